"""A checkpoint as a plain Hugging Face folder: weights, config, tokenizer and a model card. Also while a run goes on."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybert.corpus.store import Store
from raybert.train.checkpoint import CHECKPOINTS, Checkpoints, RunState
from raybert.train.gather import load_weights

_CARD = """---
library_name: transformers
tags:
- {tag}
- raybert
---
# {name}

A {kind} {what} by raybert {version} in {step:,} steps.

{usage}

| figure | value |
|---|---|
{figures}

Settings that decided the numbers:

```json
{settings}
```
"""

_PLAIN = """```python
from transformers import AutoTokenizer, {kind}

tokenizer, model = AutoTokenizer.from_pretrained("{name}"), {kind}.from_pretrained("{name}")
```"""
_ADAPTER = """The weights here are an adapter and a head; they belong to the model `{base}`, which must be where it was, or as far
from this folder as it was. raybert reads both as one model:

```bash
raybert predict model.name={name} data.path=... output.path=...
raybert embed model.name={name} data.path=... output.path=...
```"""


def export(run: str, target: str, *, step: int | None = None, tokens: str | None = None) -> int:
    """Write the model of a run's checkpoint (default: the newest) to `target`; both local or in an object store.

    Args:
        run: `output.path` of the run.
        tokens: where its token shards, and with them the tokenizer, lie now; default: where they did.

    Returns:
        The step it is from.

    Raises:
        ValueError: the run has no such checkpoint, or it is damaged.
    """
    checkpoints = Checkpoints(f"{run.rstrip('/')}/{CHECKPOINTS}")
    steps = checkpoints.steps()
    if not steps or (step is not None and step not in steps):
        raise ValueError(
            f"{run} has no checkpoint{'' if step is None else f' of step {step}'}; it has {steps or 'none'}"
        )
    step = steps[-1] if step is None else step
    state = RunState.of(checkpoints.record(step))
    with tempfile.TemporaryDirectory() as folder:
        kind = _save_model(folder, state.job, checkpoints.weights(step))
        source = Store(tokens or state.job["phases"][-1]["path"])
        for name in source.sizes("tokenizer"):
            Path(folder, name).write_bytes(source.read(f"tokenizer/{name}"))
        what = f"pretrained ({state.job['tokens']['objective']})"
        Path(folder, "README.md").write_text(model_card(target, kind, state, what, "pretraining"))
        write_folder(folder, target)
    return step


def _save_model(folder: str, job: Mapping[str, Any], weights: dict[str, Any]) -> str:
    """`save_pretrained` of the model with these weights; the name of its class."""
    from transformers import AutoConfig
    from transformers.utils import logging

    from raybert.train.pretraining_model import build_model

    logging.disable_progress_bar()
    settings = dict(job["model_config"])
    model = build_model(AutoConfig.for_model(settings.pop("model_type"), **settings), pairs=job["pairs"])
    load_weights(model, weights)
    model.save_pretrained(folder)
    return type(model).__name__


def write_folder(made: str, target: str) -> None:
    """Copy the files of a local folder to `target`; nothing of ours stays in there."""
    store = Store(target)
    for file in sorted(Path(made).rglob("*")):
        if file.is_file():
            store.write(file.relative_to(made).as_posix(), file.read_bytes())
    store.leave_nothing_aside()


def model_card(target: str, kind: str, state: RunState, what: str, tag: str, base: str | None = None) -> str:
    """README.md of a finished model: a `kind` that was `what`, its figures, its settings. `base`: it is an adapter of that."""
    name = target.rstrip("/").rpartition("/")[2]
    figures = {f"held out: {name}": value for name, value in state.evaluation.items()}
    if state.loss is not None:
        figures["training loss"] = state.loss
    return _CARD.format(
        name=name,
        usage=(_PLAIN if base is None else _ADAPTER).format(kind=kind, name=name, base=base),
        kind=kind,
        what=what,
        tag=tag,
        version=state.versions.get("raybert", ""),
        step=state.step,
        figures="\n".join(f"| {name} | {value:.4g} |" for name, value in figures.items()),
        settings=json.dumps(state.job["requested"], indent=1),
    )
