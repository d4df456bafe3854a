"""raybert predict: a corpus in, the predictions of a fine-tuned model out, every row exactly once in Parquet.

Thin over the runner and the task. The driver needs no torch: models are loaded by workers only.
"""

import contextlib
import json
import sys
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config import dump_yaml, load, require
from raybert.config.predicting import HeadTaskSettings, PredictConfig, PredictDataSettings
from raybert.corpus.job import Job, name_for
from raybert.corpus.paths import absolute, public, public_name
from raybert.corpus.plan import Plan, type_from, type_text
from raybert.corpus.pool import Pool
from raybert.corpus.readers import REASON
from raybert.corpus.report import Report
from raybert.corpus.texts import text_columns, wanted_columns
from raybert.corpus.vectors import KEY, check_storable
from raybert.outlook import Outlook
from raybert.predict_shard import EXAMPLES, LoadPredictor, PrepareRows, prepare_unlabelled
from raybert.resolve import on_workers
from raybert.resolve_head import head_of, open_folder, resolve_head
from raybert.tasks.heads import Head
from raybert.tasks.known import data_side
from raybert.tasks.rows import reads_texts, refuse_unread, rows_to_predict

KIND = "labels"
"""What the `raybert` entry of the files' schema says they hold."""


def main(config: PredictConfig) -> int:
    """The command: run, print the report. Returns 0, or 1 if shards had to be given up."""
    report = predict(config)
    print(report)
    return 1 if report.aside else 0


def predict(config: PredictConfig | Mapping[str, Any]) -> Report | Outlook:
    """Predict for a corpus into a folder; what the folder already holds is not done again. An Outlook for a dry run.

    Writes the columns `id`, those kept, and what the task predicts: see `output_fields` and `decode` of its file in
    `raybert.tasks`.

    Raises:
        ValueError: settings, a model or input that cannot be used, or that changed since the folder was started.
        RuntimeError: the run failed; what was committed stays, and the same call goes on from there.
    """
    if not isinstance(config, PredictConfig):
        config = load(PredictConfig, settings=config)
    require(config, "model.name", "data.path", "output.path")
    with contextlib.ExitStack() as stack:
        return _Predicting(absolute(config), stack).go()


class _Predicting(Job):
    verb = "predict"

    @cached_property
    def head(self) -> Head:
        """That of the job, if the folder has one, else of the model."""
        job = self.ledger.job()
        head = (
            open_folder(self.config.model, self.config.task).head if job is None else head_of(job["resolved"])
        )
        refuse_unread(head.task, self.config.data)
        return head

    @property
    def reading(self) -> PredictDataSettings:
        """`data`, with the columns that the task reads as those of the text."""
        data, head = self.config.data, self.head
        if reads_texts(head.task):
            return data
        columns = data_side(head.task).columns(head.settings, labelled=False)
        return data.model_copy(update={"text": columns})

    def deciding_settings(self, config: PredictConfig) -> dict[str, Any]:
        """The settings on which the predictions depend."""
        values = config.model_dump(mode="json", exclude={"workers": True, "dry_run": True, "data": {"path"}})
        for name in ("name", "revision"):  # the digest of the weights decides, not what they are called
            values["model"].pop(name)
        values["output"] = {"rows_per_shard": values["output"]["rows_per_shard"]}
        return values

    def became(self, job: Mapping[str, Any]) -> dict[str, Any]:
        resolved = job["resolved"]
        model = {f"model.{name}": resolved[name] for name in ("dtype", "max_length")}
        task = {f"task.{name}": value for name, value in resolved["settings"].items()}
        return model | task | {"batch_tokens": resolved["batch_tokens"], "task.name": resolved["task"]}

    def new_job(self, plan: Plan) -> tuple[dict[str, Any], dict[str, bytes]]:
        resolved, text = self._resolve()
        head = head_of(resolved)
        _refuse_clashes(plan.kept, head)
        empty = pa.table({name: pa.array([], kind) for name, kind in plan.types.items()})
        empty = empty.append_column(REASON, pa.array([], pa.string()))
        if not reads_texts(head.task):  # columns of the wrong type are refused before the work begins
            rows, _ = rows_to_predict(empty, self.reading, head.task, head.settings)
            prepare_unlabelled(rows, Tokenizer.from_str(text), head, resolved["max_length"])
        job = {
            "verb": self.verb,
            "requested": self.deciding_settings(self.config),
            "tokenizer": name_for("tokenizer", text),
            "model": {"name": public_name(self.config.model.name), "revision": self.config.model.revision},
            "resolved": resolved,
            "kept": list(plan.kept),
            "types": {name: type_text(kind) for name, kind in plan.types.items()},
            "carried": plan.carried,
            "cut": plan.cut,
        }
        return job, {job["tokenizer"]: text.encode()}

    def _resolve(self) -> tuple[dict[str, Any], str]:
        pool = self.pool
        return on_workers(resolve_head, [(self.config, pool.cpus)], pool, self.config.model.name)[0]

    def check_model(self, job: Mapping[str, Any]) -> None:
        """A model may move; its weights may not change."""
        model = self.config.model
        if (public_name(model.name), model.revision) == (job["model"]["name"], job["model"]["revision"]):
            return  # workers compare the digest
        was, now = job["resolved"]["digest"], self._resolve()[0]["digest"]
        if was != now:
            raise ValueError(
                f"{self.ledger.where} was started with the weights of {job['model']['name']} (digest {was[:12]}), "
                f"{public_name(model.name)} has others (digest {now[:12]}); use another output.path"
            )

    def work(self, plan: Plan, job: Mapping[str, Any]) -> Any:
        from raybert.corpus.runner import Work

        data, resolved, output = self.reading, job["resolved"], output_schema(self.config, job)
        check_storable(output)
        tokenizer = Tokenizer.from_str(self.read_kept(job["tokenizer"]))
        texts = [*text_columns(data), *data.more_columns]
        if not reads_texts(resolved["task"]):
            lists = data_side(resolved["task"]).nested(self.head.settings)
            texts = [name for name in texts if name not in lists and not pa.types.is_nested(plan.types[name])]
        return Work(
            columns=wanted_columns(data, list(plan.kept)),
            types=plan.types,
            text_columns=texts,
            max_chars=data.max_chars,
            prepare=PrepareRows(
                data, head_of(resolved), tuple(job["kept"]), tokenizer, resolved["max_length"]
            ),
            worker=LoadPredictor(self.config.model, resolved, output),
        )

    def hint(self) -> str:
        """What may be wrong where too many rows are rejected."""
        if reads_texts(self.head.task):
            return super().hint()
        return f"are {', '.join(self.reading.text)} the right columns?"

    def describe(self, pool: Pool, job: Mapping[str, Any]) -> str:
        resolved = job["resolved"]
        count = f"{pool.low}" if pool.low == pool.high else f"{pool.low} to {pool.high}"
        on = f"{pool.gpus:g} GPU" if pool.gpus else f"{resolved['threads']} CPU thread(s)"
        rows = "padded" if resolved["padded"] else "packed"
        return f"{count} process(es), {on} each, predicting in {resolved['dtype']} on {rows} batches"

    def write_card(self, job: Mapping[str, Any], report: Report) -> None:
        """README.md, with which the folder is a Hugging Face dataset."""
        facts = {name: value for name, value in _metadata(self.config, job).items() if value is not None}
        rows = "\n".join(f"| {name} | {json.dumps(value)} |" for name, value in facts.items())
        self.ledger.store.write("README.md", _CARD.format(rows=report.vectors, facts=rows).encode())

    def estimate(self, plan: Plan, job: Mapping[str, Any]) -> Outlook:
        print(dump_yaml(with_resolved(public(self.config), self.head)), file=sys.stderr)
        return Outlook(len(plan.sources), plan.rows, len(plan.shards()), len(self.pending(plan)))


def output_schema(config: PredictConfig, job: Mapping[str, Any]) -> pa.Schema:
    """Schema of the output files, metadata included."""
    types = {name: type_from(text) for name, text in job["types"].items()}
    fields = [
        pa.field("id", types[config.data.id] if config.data.id else pa.string(), nullable=False),
        *(pa.field(name, types[name]) for name in job["kept"]),
        *(pa.field(name, kind) for name, kind in _outputs(job).items()),
    ]
    carried = {key.encode(): value.encode() for key, value in job["carried"].items()}
    entry = json.dumps(_metadata(config, job), sort_keys=True).encode()
    return pa.schema(fields, metadata={**carried, KEY: entry})


def _outputs(job: Mapping[str, Any]) -> dict[str, pa.DataType]:
    head = head_of(job["resolved"])
    return data_side(head.task).output_fields(head.settings)


def _metadata(config: PredictConfig, job: Mapping[str, Any]) -> dict[str, Any]:
    """The `raybert` entry of the schema."""
    resolved, data = job["resolved"], config.data
    return {
        "kind": KIND,
        "model": job["model"]["name"],
        **{name: resolved[name] for name in ("revision", "digest", "task", "labels", "max_length", "dtype")},
        "settings": resolved["settings"],
        "fields": [*_outputs(job)],
        **({"text": data.template or data.text_columns} if reads_texts(resolved["task"]) else {}),
        "text_pair": data.text_pair,
        "raybert": resolved["versions"]["raybert"],
    }


def with_resolved(config: Any, head: Head) -> Any:
    """The settings with what is left to the model filled in."""
    task = HeadTaskSettings(name=head.task, **head.settings.model_dump(exclude={"name"}))
    return config.model_copy(update={"task": task})


def _refuse_clashes(kept: tuple[str, ...], head: Head) -> None:
    outputs = (*data_side(head.task).output_fields(head.settings), EXAMPLES)
    clash = next((name for name in kept if name in outputs), None)
    if clash:
        raise ValueError(
            f"data.columns: {clash!r} is a column of the predictions; name the columns to keep without it"
        )


_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- raybert
---
# Predictions for {rows:,} rows

Made with [raybert](https://pypi.org/project/raybert/). Predictions lie in `data/`, one row of the corpus a row; rows
that could not be used lie in `_rejects/` with the reason.

| setting | value |
| --- | --- |
{facts}
"""
