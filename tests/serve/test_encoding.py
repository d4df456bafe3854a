"""The encoder of a replica."""

from typing import Any

import numpy as np
import pytest
import torch

from raybert.encoder.encoder import Encoder
from raybert.serve import encoding
from raybert.serve.encoding import EncoderEngine


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Torch's threads in every forward pass."""
    found: list[int] = []
    real = Encoder._sentences

    def noted(self: Encoder, *args: Any) -> Any:
        found.append(torch.get_num_threads())
        return real(self, *args)

    monkeypatch.setattr(Encoder, "_sentences", noted)
    return found


def test_few_tokens_take_one_thread_and_leave_the_others_as_they_were(
    tiny: str, seen: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encoding, "_LEAST_TOKENS", 32)  # the tiny model takes texts of 48
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        encoder = Encoder.load(tiny, dtype="float32")
        engine, way = EncoderEngine(encoder, 2), EncoderEngine(encoder, 2).way(None)
        short, long = ["a cat"], ["the cat sat on a mat and saw another cat " * 20]
        assert engine.tokenize(long, way).lengths[0] > 32
        seen.clear()
        rows = engine.run(way, [(engine.tokenize(short, way), 0, 1)])
        assert (seen, torch.get_num_threads()) == ([1], 2)
        engine.run(way, [(engine.tokenize(long, way), 0, 1)])
        assert (seen, torch.get_num_threads()) == ([1, 2], 2)
        assert np.allclose(engine.finish(rows[0], None, encoder.normalized), encoder.encode(short), atol=1e-6)
    finally:
        torch.set_num_threads(before)
