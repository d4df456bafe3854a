"""The paths in settings: absolute for every process, without credentials where they are shown."""

from pathlib import Path

import pytest

from raybert.config import EmbedConfig, EvaluateConfig, FinetuneConfig, PretrainConfig, load
from raybert.corpus.paths import absolute, public


def test_local_paths_and_folders_of_models_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = {
        "model.name": "model",
        "data.path": ["a.csv", "s3://bucket/b.csv"],
        "data.validation": "c.csv",
        "output.path": "run",
    }
    found = absolute(load(FinetuneConfig, settings=settings))
    assert found.model.name == f"{tmp_path}/model"
    assert found.data.path == [f"{tmp_path}/a.csv", "s3://bucket/b.csv"]
    assert found.data.validation == f"{tmp_path}/c.csv"
    assert found.output.path == f"{tmp_path}/run"
    hub = absolute(load(EvaluateConfig, settings={"model.name": "org/name", "model.before": "model"}))
    assert (hub.model.name, hub.model.before) == ("org/name", f"{tmp_path}/model")


def test_groups_within_lists_are_changed_and_empty_settings_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(PretrainConfig, settings={"train.phases": [{"steps": 1, "path": "later"}, {"steps": 2}]})
    phases = absolute(config).train.phases
    assert [phase.path for phase in phases] == [f"{tmp_path}/later", None]
    assert absolute(config).data.path == "" == absolute(config).model.name


def test_shown_settings_hold_no_credentials() -> None:
    settings = {
        "data.path": "s3://user:word@bucket/in?endpoint_override=http://x",
        "output.path": "s3://user:word@bucket/out",
    }
    found = public(load(EmbedConfig, settings=settings))
    assert (found.data.path, found.output.path) == ("s3://bucket/in", "s3://bucket/out")
