"""What an evaluation found: figures, tables of labels and of calibration, as JSON and back."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from raybert.evaluate.scores import CalibrationBin, LabelScore, Tables


class Metric(Protocol):
    """What figures come from. It may have `tables()`, which gives `raybert.evaluate.scores.Tables`."""

    def result(self) -> dict[str, float]:
        """The figures by name."""


@dataclass(frozen=True)
class Evaluation:
    """One model on one test set.

    Attributes:
        name: what tables call it, such as `before`.
        task: such as `classify`.
        model: folder or hub name.
        rows: of the test set.
        metrics: the figures by name.
        seconds: that predicting took.
        labels: their names; none for a task without labels.
        confusion: counts [true label][predicted label], or None.
        per_label: the table of labels.
        calibration: the bins of the probability of the predicted label.
        points: (true, predicted) numbers of some rows.
        main: the figure by which models are compared, where there is one.
    """

    name: str
    task: str
    model: str
    rows: int
    metrics: dict[str, float]
    seconds: float = 0.0
    labels: list[str] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    per_label: list[LabelScore] = field(default_factory=list)
    calibration: list[CalibrationBin] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)
    main: str = ""

    @classmethod
    def of(
        cls,
        metric: Metric,
        *,
        name: str,
        task: str,
        model: str,
        rows: int,
        seconds: float = 0.0,
        more: Mapping[str, float] | None = None,
        main: str = "",
    ) -> "Evaluation":
        """All that a metric knows; `more` are figures beside its own, such as the loss.

        Figures of single labels are in its table of labels, not among the others.

        Raises ValueError if nothing was added to the metric.
        """
        figures = {**metric.result(), **(more or {})}
        tables = metric.tables() if hasattr(metric, "tables") else Tables()
        of_labels = {
            f"{score.label}_{figure}"
            for score in tables.per_label
            for figure in ("precision", "recall", "f1", "support")
        }
        return cls(
            name=name,
            task=task,
            model=model,
            rows=rows,
            metrics={key: value for key, value in figures.items() if key not in of_labels},
            seconds=seconds,
            main=main,
            **{part.name: getattr(tables, part.name) for part in fields(tables)},
        )

    def to_json(self) -> str:
        """One JSON object; a figure that is not finite is null."""
        values = asdict(self)
        values["metrics"] = {k: v if math.isfinite(v) else None for k, v in self.metrics.items()}
        return json.dumps(values, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Evaluation":
        """The inverse of `to_json`; a null figure is NaN. Raises ValueError for other JSON."""
        try:
            values: dict[str, Any] = json.loads(text)
            values["metrics"] = {k: math.nan if v is None else v for k, v in values["metrics"].items()}
            values["per_label"] = [LabelScore(**row) for row in values["per_label"]]
            values["points"] = [tuple(pair) for pair in values.get("points", [])]
            values["calibration"] = [CalibrationBin(**row) for row in values["calibration"]]
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this JSON is no evaluation: {error!r}") from None
