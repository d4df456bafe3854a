"""Attention in C against softmax(q k' / sqrt(d) + bias) v, and what happens where it cannot be built."""

import os
import subprocess

import numpy as np
import pytest
import torch

from raybert.encoder import Encoder, native
from raybert.encoder.attention import Rows
from raybert.encoder.native import attend_native
from tests.encoder.test_attention import formula
from tests.encoder.tiny import FAMILIES, tiny_model

REASON = native.why_not(torch.zeros(1, dtype=torch.bfloat16), 32)
needs_kernel = pytest.mark.skipif(bool(REASON), reason=REASON)

# every remainder of 4, 8 and 16, of one length and of many, and no token at all
LENGTHS = np.array([*range(40, 0, -1), 100, 100, 0, 257])


@needs_kernel
@pytest.mark.parametrize("window", [None, 0, 5, 64])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("d", [32, 64, 96, 128])
def test_the_kernel_is_the_formula(d, biased, window):
    random = torch.Generator().manual_seed(d)
    qkv = torch.randn(int(LENGTHS.sum()), 3, 3, d, generator=random).bfloat16()
    bias = torch.randn(3, 260, 260, generator=random).bfloat16() if biased else None
    found = attend_native(qkv, Rows(LENGTHS).offsets, bias=bias, window=window)
    expected = formula(qkv, LENGTHS, bias, window)
    # results are rounded to 8 bits, and so are the weights on the way
    assert (found.double() - expected).abs().max() < 2**-7 * expected.abs().max()


@needs_kernel
def test_large_scores_neither_overflow_nor_vanish():
    qkv = (torch.randn(50, 3, 2, 32, generator=torch.Generator().manual_seed(0)) * 30).bfloat16()
    lengths = np.array([50])
    found, expected = attend_native(qkv, Rows(lengths).offsets), formula(qkv, lengths)
    assert found.isfinite().all()
    assert (found.double() - expected).abs().max() < 2**-7 * expected.abs().max()


@needs_kernel
def test_a_value_that_is_not_finite_stays_in_its_text():
    qkv = torch.ones(40, 3, 2, 32).bfloat16()
    qkv[:7, 2] = float("nan")
    found = attend_native(qkv, Rows(np.array([7, 33])).offsets)
    assert found[:7].isnan().all()
    assert torch.equal(found[7:], torch.ones(33, 64).bfloat16())


@needs_kernel
def test_threads_change_no_bit():
    qkv = torch.randn(300, 3, 4, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    offsets, before = Rows(np.array([99, 99, 99, 3])).offsets, torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = attend_native(qkv, offsets)
        torch.set_num_threads(3)
        assert torch.equal(attend_native(qkv, offsets), one)
    finally:
        torch.set_num_threads(before)


@needs_kernel
@pytest.mark.parametrize("family", FAMILIES)
def test_models_use_it_and_give_the_same_vectors(family, tmp_path, texts):
    folder = tiny_model(tmp_path / "m", family, heads=1)
    exact = Encoder.load(folder, dtype="float32").encode(texts)
    encoder = Encoder.load(folder, dtype="bfloat16")
    assert encoder.kernels == "native"
    other = Encoder.load(folder, dtype="bfloat16", kernels="onednn")
    assert (other.encode(texts) * exact).sum(1).min() > 0.9995
    assert (encoder.encode(texts) * exact).sum(1).min() > 0.9995
    assert np.abs(encoder.encode(texts, batch_tokens=100) - encoder.encode(texts)).max() < 0.02


def test_why_not():
    assert "bfloat16" in native.why_not(torch.zeros(1), 32)
    assert "heads have 24 numbers" in native.why_not(torch.zeros(1, dtype=torch.bfloat16), 24)


@needs_kernel
def test_it_is_built_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not isinstance(native._library.__wrapped__(), str)
    (kept,) = (tmp_path / "raybert").iterdir()
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("built again"))
    assert not isinstance(native._library.__wrapped__(), str)
    assert kept.name.endswith(".so")


@needs_kernel
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not isinstance(native._library.__wrapped__(), str)


def test_without_a_compiler_or_the_instructions_the_reason_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_cpu_flags", lambda: "flags: avx2")
    assert native._library.__wrapped__() == "this CPU has no AVX-512 BF16"
    monkeypatch.setattr(native, "_cpu_flags", lambda: "flags: avx512_bf16")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C compiler" in native._library.__wrapped__()
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'no such thing' >&2\nexit 3\n")
    os.chmod(broken, 0o755)
    assert native._library.__wrapped__() == "attention.c does not build: no such thing"
