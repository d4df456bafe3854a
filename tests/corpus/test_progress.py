"""What a run says of its speed."""

import io

import pytest

from raybert.corpus import progress
from raybert.corpus.outcome import Finished
from raybert.corpus.progress import Progress

COUNTS = {"rows": 1, "tokens": 10, "rejected": 0, "reasons": {}}


def test_steady_speed_begins_when_the_last_worker_has_brought_a_shard(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress(10, io.StringIO())
    shown.start([], "two encoders")
    for at, worker in [(110, "a"), (112, "a"), (114, "a"), (115, "b"), (117, "a"), (119, "b")]:
        now[0] = at
        shown.add(
            Finished("shard", "done", counts=COUNTS, encoded_tokens=10, padded_tokens=10, worker=worker)
        )
    assert shown.steady_tokens_per_second == pytest.approx(20 / 4)
    assert (shown.first_result, shown.tokens) == (110, 60)
