"""Resolving beside a Ray that is still starting: the same answer and the same errors as in this process."""

import pytest

from raybert import resolve
from raybert.config import EmbedConfig, load
from raybert.resolve import LocalResolve


def settings(model: str, **more: object) -> EmbedConfig:
    return load(EmbedConfig, settings={"model.name": model, "model.dtype": "float32", **more})


def test_a_process_of_its_own_resolves_as_this_one_would(tiny):
    config = settings(tiny, **{"batch_tokens": 512})
    with LocalResolve(config, []) as probe:
        resolved, tokenizer = probe.result()
    expected, text = resolve.resolve_here(config, 1, [])
    assert (resolved, tokenizer) == (expected, text)
    assert (resolved["threads"], resolved["batch_tokens"], resolved["dimension"]) == (1, 512, 32)


def test_a_setting_that_cannot_be_used_is_named(tiny):
    with (
        LocalResolve(settings(tiny, **{"model.dimensions": 33}), []) as probe,
        pytest.raises(ValueError, match="dimensions"),
    ):
        probe.result()


def test_a_process_that_dies_is_said_so_and_leaving_ends_it(tiny):
    with LocalResolve(settings(tiny), []) as probe:
        probe._process.kill()
        with pytest.raises(RuntimeError, match="died; is there enough memory"):
            probe.result()
    with LocalResolve(settings(tiny), []) as probe:
        pass
    assert probe._process.returncode == -9


def test_the_kernels_of_the_plan_are_taken_or_refused(tiny, monkeypatch):
    config = settings(tiny)
    plan, _ = resolve.resolve_here(config, 1, [])
    without = {key: value for key, value in plan.items() if key != "kernels"}  # an old folder
    for resolved, kernels in (
        (plan, plan["kernels"]),
        (plan | {"kernels": "torch"}, "torch"),
        (without, "transformers"),
    ):
        assert resolve.load_as_resolved(config.model, resolved).kernels == kernels
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    with pytest.raises(ValueError, match="kernels 'onednn' are not there for this model"):
        resolve.load_as_resolved(config.model, plan | {"kernels": "onednn"})


def test_versions_are_plain_text():
    """A worker answers with them, and the driver may have no torch to read torch's own kind of text with."""
    assert {type(version) for version in resolve.versions().values()} == {str}
