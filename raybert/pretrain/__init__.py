"""Pretraining data: documents to instances, masks, packed batches; numpy and pyarrow, never torch or ray."""
