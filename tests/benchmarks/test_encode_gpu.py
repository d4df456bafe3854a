"""The GPU benchmark's correctness part, on a CPU; and the whole of it where there is a GPU."""

import json

import pytest
import torch

from tests.benchmarks.encode_gpu import flops_per_token, main, random_texts


def test_packed_equals_padded_on_a_cpu(capsys):
    code = main(["device=cpu", "models=tiny,tiny-roberta", "lengths=512,50", "tokens=6000", "rounds=1"])
    out = capsys.readouterr().out
    assert code == 0
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert {(row["model"], row["length"], row["side"]) for row in rows} == {
        (model, length, side)
        for model in ("tiny", "tiny-roberta")
        for length in (512, 50)
        for side in ("torch", "transformers")
    }
    assert all(0.9995 <= row["least_cosine"] <= 1.0001 for row in rows)
    assert "compiled: left out" in out


def test_flops_count_real_tokens_alone():
    lengths = random_texts(512, 1024).lengths
    assert lengths.tolist() == [512, 512]
    assert flops_per_token("base", lengths) == 12 * (2 * (4 * 768**2 + 2 * 768 * 3072) + 4 * 768 * 512)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.timeout(900)
def test_packed_equals_padded_on_a_gpu(capsys):
    assert main(["models=base,roberta", "lengths=512,50", "tokens=200000", "rounds=1"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert {row["side"] for row in rows} == {"torch", "compiled", "transformers"}
