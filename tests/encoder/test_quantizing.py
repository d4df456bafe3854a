"""Vectors in fewer bytes and back."""

import numpy as np
import pytest

from raybert.encoder.quantizing import dequantize, int8_scale, quantize


@pytest.fixture
def vectors():
    random = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    return random / np.linalg.norm(random, axis=1, keepdims=True)


def test_float_round_trips(vectors):
    assert np.array_equal(dequantize(quantize(vectors, "float32"), "float32"), vectors)
    half = quantize(vectors, "float16")
    assert half.dtype == np.float16
    assert np.abs(dequantize(half, "float16") - vectors).max() < 2**-11


def test_int8_is_off_by_half_a_step_at_most(vectors):
    scale = int8_scale(vectors)
    stored = quantize(vectors, "int8", scale)
    assert (stored.dtype, np.abs(stored).max()) == (np.int8, 127)
    assert np.abs(dequantize(stored, "int8", scale) - vectors).max() <= scale / 2 * 1.0001
    # outside the calibration sample: clipped, not wrapped around
    assert quantize(np.array([[9.0, -9.0]], np.float32), "int8", scale).tolist() == [[127, -127]]
    assert int8_scale(np.zeros((3, 4))) == int8_scale(np.zeros((0, 4))) == 1.0


def test_binary_is_the_signs(vectors):
    stored = quantize(vectors, "binary")
    assert (stored.dtype, stored.shape) == (np.uint8, (50, 8))
    assert np.array_equal(dequantize(stored, "binary"), np.where(vectors > 0, 1, -1))
    assert quantize(np.array([[1, -1, 0, 1, -1, -1, -1, 1]], np.float32), "binary").tolist() == [[0b10010001]]


def test_what_sentence_transformers_makes_is_the_same(vectors):
    from sentence_transformers.util import quantize_embeddings

    assert np.array_equal(quantize(vectors, "binary"), quantize_embeddings(vectors, precision="ubinary"))


def test_errors(vectors):
    with pytest.raises(ValueError, match="divisible by 8, not 6"):
        quantize(vectors[:, :6], "binary")
    for call in (quantize, dequantize):
        with pytest.raises(ValueError, match="int8"):
            call(vectors, "int8")
        with pytest.raises(ValueError, match="'int4'"):
            call(vectors, "int4")
