"""raybert probe: a linear classifier on a folder of vectors, with its report; the encoder itself stays as it is.

The feature-based way (Devlin et al. 2019, section 5.3). It needs the matrix of vectors in memory about three times.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybert.config import load, require
from raybert.config.probing import ProbeConfig
from raybert.corpus.filesystems import public_uri
from raybert.corpus.progress import duration
from raybert.corpus.store import Store
from raybert.evaluate.features import SPACE, Features, read_features, refuse_other_space
from raybert.evaluate.linear import Fit, Linear, fit
from raybert.evaluate.metrics import Confusion, Regression
from raybert.evaluate.report import write_report
from raybert.evaluate.result import Evaluation
from raybert.evaluate.tables import comparison_table, label_table

_BLOCK = 16384  # rows scored at once
_SHOWN = 10


@dataclass(frozen=True)
class Probed:
    """What a probe found.

    Attributes:
        evaluation: of the rows that were not trained on.
        fit: the classifier and how its strength was chosen.
        trained: rows trained on.
        left_out: rows without a label.
        path: where the report and the classifier lie.
        seconds: in all.
    """

    evaluation: Evaluation
    fit: Fit
    trained: int
    left_out: int
    path: str
    seconds: float

    def __str__(self) -> str:
        lines = [label_table(self.evaluation, digits=4)] if self.evaluation.per_label else []
        lines.append(comparison_table(None, self.evaluation))
        facts = [f"trained on {self.trained:,} rows, evaluated on {self.evaluation.rows:,}"]
        if self.left_out:
            facts.append(f"{self.left_out:,} rows left out: their label is null")
        tried = ", ".join(f"{c:g}: {score:.4f}" for c, score in self.fit.scores.items())
        facts.append(f"c={self.fit.c:g}" + (f" by cross-validation ({tried})" if tried else ""))
        if not self.fit.converged:
            facts.append(
                "the solver did not converge: a smaller probe.c, or probe.standardize=true, may help"
            )
        facts.append(f"{duration(self.seconds)}, report in {self.path}/report.html")
        return "\n".join([*lines, *facts])


def main(config: ProbeConfig) -> int:
    """The command: probe, print the tables. Returns 0."""
    print(probe(config))
    return 0


def probe(config: ProbeConfig | Mapping[str, Any]) -> Probed:
    """Train a linear classifier on vectors (ridge regression where labels are floating) and report how good it is.

    Writes report.html, its pictures, metrics.json, probe.npz and probe.json (`raybert.evaluate.linear.Linear`).

    Raises:
        ValueError: settings or a folder that cannot be used; one line that says what to change.
        OSError: the output cannot be written.
    """
    if not isinstance(config, ProbeConfig):
        config = load(ProbeConfig, settings=config)
    require(config, "data.path", "data.label", "output.path")
    started = time.monotonic()
    train, test = _parts(config)
    labels = _label_values(train.labels, config.data.label)
    names = None if labels is None else [str(value) for value in labels.to_pylist()]
    found = fit(
        train.vectors,
        _targets(train.labels, labels, config),
        names,
        config.probe.strengths,
        standardize=config.probe.standardize,
        seed=config.probe.seed,
    )
    model = replace(found.model, facts=_facts(config, train, found))
    evaluation, predictions = _evaluate(model, test, _targets(test.labels, labels, config))
    store = Store(config.output.path)
    model.save(store)
    write_report(store, None, evaluation, changed_rows=predictions)
    left_out = train.left_out + (test.left_out if config.data.validation else 0)
    where = public_uri(config.output.path)
    return Probed(evaluation, found, len(train), left_out, where, time.monotonic() - started)


def split(groups: np.ndarray | None, rows: int, share: float, seed: int) -> np.ndarray:
    """Which rows are held out: bool [rows], about `share` of each group, the same for the same seed.

    At least one row of each group is not held out, so that each can be learnt.

    Args:
        groups: int64 [rows], or None for one group.
    """
    groups = np.zeros(rows, np.int64) if groups is None else groups
    order = np.random.default_rng(seed).permutation(rows)
    order = order[np.argsort(groups[order], kind="stable")]
    sizes = np.bincount(groups)
    ends = np.cumsum(sizes)
    # rounding the ends, not the sizes: the whole has its share however small the groups are
    edges = np.floor(np.concatenate([[0.0], ends]) * share + 0.5).astype(np.int64)
    counts = np.minimum(np.diff(edges), np.maximum(sizes - 1, 0))
    rank = np.arange(rows) - np.repeat(ends - sizes, sizes)
    held_out = np.zeros(rows, bool)
    held_out[order] = rank < np.repeat(counts, sizes)
    return held_out


def _parts(config: ProbeConfig) -> tuple[Features, Features]:
    """(to train on, to evaluate on)."""
    data = config.data
    whole = read_features(data.path, data.label)
    if len(whole) == 0:
        raise ValueError(f"data.path={public_uri(data.path)} has no rows whose {data.label!r} is not null")
    if data.validation is not None:
        test = read_features(data.validation, data.label, setting="data.validation")
        refuse_other_space(whole, test, ("data.path", "data.validation"))
        if len(test) == 0:
            raise ValueError(
                f"data.validation={public_uri(data.validation)} has no rows whose {data.label!r} is not null"
            )
        return whole, test
    values = _label_values(whole.labels, data.label)
    groups = None if values is None else _targets(whole.labels, values, config)
    held_out = split(groups, len(whole), data.share, config.probe.seed)
    if not held_out.any():
        kinds = "" if values is None else f" with {len(values)} labels"
        raise ValueError(
            f"data.share={data.share} of {len(whole)} rows{kinds} leaves none to evaluate on: at least one row of each "
            "label is kept to learn from"
        )
    return _take(whole, ~held_out), _take(whole, held_out)


def _take(features: Features, rows: np.ndarray) -> Features:
    mask = pa.array(rows)
    return replace(
        features,
        vectors=features.vectors[rows],
        labels=features.labels.filter(mask),
        texts=features.texts.filter(mask),
    )


def _label_values(labels: pa.Array, column: str) -> pa.Array | None:
    """The different labels, in order; None for a regression. Raises ValueError if there is one only."""
    if pa.types.is_floating(labels.type):
        if len(pc.unique(labels)) < 2:
            raise ValueError(
                f"data.label={column}: all rows have the value {labels[0].as_py()}: nothing to learn"
            )
        return None
    values = pc.unique(labels)
    if len(values) < 2:
        raise ValueError(
            f"data.label={column}: all rows have the label {values[0].as_py()!r}: nothing to learn"
        )
    return values.take(pc.sort_indices(values))


def _targets(labels: pa.Array, values: pa.Array | None, config: ProbeConfig) -> np.ndarray:
    """Numbers of labels int64 [rows], or float32 values. Raises ValueError for labels that are not of `values`."""
    column = config.data.label
    if values is None:
        if not pa.types.is_floating(labels.type):
            raise ValueError(
                f"data.label={column} is floating in data.path, {labels.type} in data.validation"
            )
        return labels.to_numpy(zero_copy_only=False).astype(np.float32)
    if labels.type != values.type:
        raise ValueError(
            f"data.label={column} is {values.type} in data.path, {labels.type} in data.validation"
        )
    numbers = pc.index_in(labels, value_set=values)
    if numbers.null_count:
        unknown = pc.unique(labels.filter(pc.is_null(numbers))).to_pylist()
        raise ValueError(
            f"data.validation has labels that data.path lacks: {', '.join(map(str, unknown[:_SHOWN]))}"
            + (f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else "")
        )
    return numbers.to_numpy(zero_copy_only=False).astype(np.int64)


def _evaluate(model: Linear, test: Features, targets: np.ndarray) -> tuple[Evaluation, pa.Table]:
    """The evaluation, and the table of predictions that the report takes its wrong rows from."""
    started = time.monotonic()
    metric = Regression() if model.labels is None else Confusion(model.labels)
    parts = []
    for block, truth, texts in _blocks(test, targets):
        if model.labels is None:
            predicted = model.predict(block)
            metric.add(truth, predicted)
            parts.append(pa.table({"text": texts, "label": truth, "after": predicted}))
            continue
        probabilities = model.probabilities(block)
        predicted = probabilities.argmax(axis=1)
        sure = probabilities[np.arange(len(block)), predicted]
        metric.add(truth, predicted, sure)
        names = np.array(model.labels, object)
        columns = {"text": texts, "label": names[truth], "after": names[predicted], "after_probability": sure}
        parts.append(pa.table(columns))
    evaluation = Evaluation.of(
        metric,
        name="probe",
        task="linear probe",
        model=str(test.metadata.get("model", "")),
        rows=len(test),
        seconds=time.monotonic() - started,
    )
    return evaluation, pa.concat_tables(parts)


def _blocks(test: Features, targets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, pa.Array]]:
    for at in range(0, len(test), _BLOCK):
        rows = slice(at, at + _BLOCK)
        yield test.vectors[rows], targets[rows], test.texts[rows]


def _facts(config: ProbeConfig, train: Features, found: Fit) -> dict[str, Any]:
    """What probe.json says beside the labels."""
    return {
        "label": config.data.label,
        "c": found.c,
        "scores": {f"{c:g}": score for c, score in found.scores.items()},
        "rows": len(train),
        "settings": config.probe.model_dump(mode="json"),
        "vectors": {name: train.metadata.get(name) for name in ("model", "revision", *SPACE)},
    }
