"""Training: the model's losses, one step, the DeepSpeed engine, checkpoints for any number of workers, the Ray loop."""
