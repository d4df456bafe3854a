"""Vectors in fewer bytes: float16, int8 and binary, and back. numpy only."""

import numpy as np

DTYPES = ("float32", "float16", "int8", "binary")


def int8_scale(sample: np.ndarray) -> float:
    """The step of int8 vectors: the largest absolute value of a calibration sample [n, d], over 127."""
    largest = float(np.abs(sample).max()) if sample.size else 0.0
    return largest / 127 if largest > 0 else 1.0


def quantize(vectors: np.ndarray, dtype: str, scale: float | None = None) -> np.ndarray:
    """float32 [n, d] as `dtype`.

    float32 and float16 are casts. int8 is round(x / scale) clipped to +-127 (one scale for all numbers, so that
    inner products keep their order). binary is one bit a number, 1 for x > 0, packed to uint8 [n, d / 8] with the
    first number in the highest bit (`np.packbits`; what sentence-transformers calls "ubinary").
    Raises ValueError for an unknown dtype, int8 without a scale, and binary with d not divisible by 8.
    """
    if dtype == "float32":
        return np.asarray(vectors, np.float32)
    if dtype == "float16":
        return vectors.astype(np.float16)
    if dtype == "int8":
        if scale is None or not scale > 0:
            raise ValueError(f"int8 vectors need a positive scale, not {scale}; take int8_scale(sample)")
        return np.clip(np.rint(vectors / scale), -127, 127).astype(np.int8)
    if dtype == "binary":
        if vectors.shape[1] % 8:
            raise ValueError(
                f"binary vectors need a width divisible by 8, not {vectors.shape[1]}; set dimensions"
            )
        return np.packbits(vectors > 0, axis=1)
    raise ValueError(f"dtype {dtype!r} of stored vectors is none of {', '.join(DTYPES)}")


def dequantize(stored: np.ndarray, dtype: str, scale: float | None = None) -> np.ndarray:
    """float32 [n, d] from what `quantize` made; a binary bit becomes +1 or -1."""
    if dtype in ("float32", "float16"):
        return stored.astype(np.float32)
    if dtype == "int8":
        if scale is None or not scale > 0:
            raise ValueError(f"int8 vectors need the positive scale they were stored with, not {scale}")
        return stored.astype(np.float32) * np.float32(scale)
    if dtype == "binary":
        return np.unpackbits(stored, axis=1).astype(np.float32) * 2 - 1
    raise ValueError(f"dtype {dtype!r} of stored vectors is none of {', '.join(DTYPES)}")
