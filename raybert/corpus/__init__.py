"""Files in, files out: pyarrow and ray.data, never torch."""
