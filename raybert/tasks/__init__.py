"""One downstream task a file: rows of a table to examples, and logits to metrics and predictions."""
