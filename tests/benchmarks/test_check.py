"""The verdict of check.py, without measuring."""

from tests.benchmarks import check

MACHINE = {"cpu": "Some CPU", "flags": ["avx512_bf16"], "cores": 2}
KEPT = {"machine": MACHINE, "ratios": {"minilm, short, sentence-transformers": {"ratio": 3.0, "noise": 0.3}}}


def report(*times):
    """encode.py's JSON with these ratios of the rounds."""
    other = {"raybert_is_times": sorted(times)[len(times) // 2], "ratios": list(times)}
    sides = {"raybert": {}, "sentence-transformers": other}
    return {"machine": MACHINE, "cells": [{"model": "minilm", "texts": "short", "sides": sides}]}


def test_within_the_noise_passes():
    assert check.judge(KEPT, MACHINE, lambda: report(2.6, 2.75, 2.9))[0] == 0
    assert check.judge(KEPT, MACHINE, lambda: report(9.0))[0] == 0


def test_beyond_the_noise_fails_with_a_line_a_ratio():
    code, lines = check.judge(KEPT, MACHINE, lambda: report(2.5, 2.6, 2.9))
    assert code == 1
    assert lines == [
        "minilm, short, sentence-transformers: raybert is 2.60 x as fast, was 3.00 x, noise 0.30"
    ]


def test_a_ratio_that_was_not_measured_fails():
    code, lines = check.judge(KEPT, MACHINE, lambda: {"machine": MACHINE, "cells": []})
    assert code == 1
    assert "not measured" in lines[0]


def test_on_another_machine_nothing_is_measured():
    for change in ({"cpu": "Another CPU"}, {"flags": []}, {"cores": 16}):
        code, lines = check.judge(KEPT, MACHINE | change, lambda: 1 / 0)
        assert code == 0
        assert "skipped" in lines[0]


def test_noise_is_the_spread_over_the_rounds_but_never_nothing():
    name = "minilm, short, sentence-transformers"
    assert check.ratios(report(2.0, 2.5, 3.0))["ratios"][name] == {"ratio": 2.5, "noise": 1.0}
    assert check.ratios(report(2.0, 2.0))["ratios"][name] == {"ratio": 2.0, "noise": 0.24}
