"""Several tasks on a real Ray: tables in, a model a task out, each read by raybert evaluate."""

import pytest

from raybert.evaluate.evaluate import evaluate
from raybert.finetune import finetune
from tests.train.several_tables import several_settings, tables


@pytest.mark.slow
def test_the_whole_way(tmp_path, ray_local):
    tables(tmp_path)
    changes = {"workers.count": 2, "train.steps": 24, "train.evaluate.metric": "intents.accuracy"}
    settings = several_settings(tmp_path, tmp_path / "run", **changes)
    report = finetune(settings)
    figures = report.figures
    assert "intents/train            120 rows = 120 used + 0 rejected" in str(report)
    assert "held_out_numbers.spearman" in str(report)
    found = evaluate(
        {
            "model.name": str(tmp_path / "run" / "model" / "intents"),
            "data.path": str(tmp_path / "intents-validation.parquet"),
            "output.path": str(tmp_path / "report"),
        }
    )
    assert found.after.metrics["accuracy"] == pytest.approx(figures["held_out_intents.accuracy"])
    assert finetune(settings).figures == figures
    with pytest.raises(ValueError, match=r"task\.temperature=2\.0 \(was 1\.0\)"):
        finetune({**settings, "task.temperature": 2.0})
