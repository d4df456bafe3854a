"""raybert prepare: documents in, token shards out, every document accounted for. Thin over the runner."""

import contextlib
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from raybert import __version__
from raybert.config import ConfigError, PrepareConfig, dump_yaml, load, require
from raybert.corpus.duplicates import find_duplicates
from raybert.corpus.job import Job, name_for
from raybert.corpus.models import fetch_model
from raybert.corpus.paths import absolute, public, public_name
from raybert.corpus.plan import Plan, type_from, type_text
from raybert.corpus.pool import Pool
from raybert.corpus.report import Report
from raybert.corpus.session import cluster_map
from raybert.corpus.texts import text_columns, wanted_columns
from raybert.encoder.hub import resolve
from raybert.outlook import Outlook
from raybert.prepare_shard import LoadBuilder, PrepareDocuments, donors_of
from raybert.pretrain.shards import token_schema
from raybert.pretrain.tokenizer_folder import TokenizerFolder, read_tokenizer


def main(config: PrepareConfig) -> int:
    """The command: run, print the report. Returns 0, or 1 if shards had to be given up."""
    report = prepare(config)
    print(report)
    return 1 if report.aside else 0


def prepare(config: PrepareConfig | Mapping[str, Any]) -> Report | Outlook:
    """Turn a corpus of documents into token shards; what the folder already holds is not done again.

    An Outlook for a dry run.

    Raises:
        ValueError: settings or input that cannot be used, or that changed since the folder was started.
        RuntimeError: the run failed; what was committed stays, and the same call goes on from there.
    """
    if not isinstance(config, PrepareConfig):
        config = load(PrepareConfig, settings=config)
    require(config, "model.name", "data.path", "output.path")
    _check(config)
    with contextlib.ExitStack() as stack:
        return _Preparing(absolute(config), stack).go()


def _check(config: PrepareConfig) -> None:
    if config.data.columns:
        raise ConfigError("data.columns cannot be kept: token shards hold instances, not rows")
    settings = config.prepare
    if settings.compatible and (config.data.format, settings.objective) != ("documents", "nsp"):
        raise ConfigError(
            "prepare.compatible=true needs data.format=documents (files of sentences) and prepare.objective=nsp"
        )


class _Preparing(Job):
    verb = "prepare"

    def __init__(self, config: PrepareConfig, stack: contextlib.ExitStack) -> None:
        # no model runs here: a GPU would only be kept from others
        workers = config.workers.model_copy(update={"gpus": 0.0})
        super().__init__(config.model_copy(update={"workers": workers}), stack)

    def deciding_settings(self, config: PrepareConfig) -> dict[str, Any]:
        values = config.model_dump(
            mode="json", exclude={"workers": True, "dry_run": True, "data": {"path"}, "model": True}
        )
        values["output"] = {"rows_per_shard": values["output"]["rows_per_shard"]}
        return values

    def new_job(self, plan: Plan) -> tuple[dict[str, Any], dict[str, bytes]]:
        text = json.dumps(self._read_tokenizer().as_dict(), sort_keys=True)
        job = {
            "verb": self.verb,
            "requested": self.deciding_settings(self.config),
            "tokenizer": name_for("tokenizer", text),
            "model": {"name": public_name(self.config.model.name), "revision": self.config.model.revision},
            "kept": [],
            "types": {name: type_text(kind) for name, kind in plan.types.items()},
            "carried": {},
            "cut": plan.cut,
        }
        return job, {job["tokenizer"]: text.encode()}

    def _read_tokenizer(self) -> TokenizerFolder:
        folder, _ = resolve(fetch_model(self.config.model.name), self.config.model.revision)
        return read_tokenizer(folder)

    def check_model(self, job: Mapping[str, Any]) -> None:
        """A tokenizer may move; it may not become another."""
        model = self.config.model
        if (public_name(model.name), model.revision) == (job["model"]["name"], job["model"]["revision"]):
            return  # the one kept in the folder is used
        text = json.dumps(self._read_tokenizer().as_dict(), sort_keys=True)
        if name_for("tokenizer", text) != job["tokenizer"]:
            raise ValueError(
                f"{self.ledger.where} was started with the tokenizer of {job['model']['name']}, "
                f"that of {public_name(model.name)} is another; use another output.path"
            )

    def _kept_tokenizer(self, job: Mapping[str, Any]) -> TokenizerFolder:
        return TokenizerFolder(**json.loads(self.read_kept(job["tokenizer"])))

    def work(self, plan: Plan, job: Mapping[str, Any]) -> Any:
        from raybert.corpus.runner import Work

        data, settings, tokenizer = self.config.data, self.config.prepare, self._kept_tokenizer(job)
        draws = settings.objective == "nsp" and not settings.compatible
        donors = donors_of(plan, data, settings) if draws else None
        return Work(
            columns=wanted_columns(data, []),
            types={name: type_from(text) for name, text in job["types"].items()},
            text_columns=text_columns(data),
            max_chars=data.max_chars,
            prepare=PrepareDocuments(data, settings, self._duplicates(plan)),
            worker=LoadBuilder(settings, tokenizer, self._schema(job, tokenizer), donors),
        )

    def _duplicates(self, plan: Plan) -> dict[str, np.ndarray]:
        if not self.config.prepare.deduplicate:
            return {}
        assert self.pool  # connects
        return find_duplicates(plan, self.config.data, self.ledger, cluster_map)

    def _schema(self, job: Mapping[str, Any], tokenizer: TokenizerFolder) -> pa.Schema:
        return token_schema(
            _metadata(self.config, job, tokenizer), static_masks=self.config.prepare.compatible
        )

    def describe(self, pool: Pool, job: Mapping[str, Any]) -> str:
        count = f"{pool.low}" if pool.low == pool.high else f"{pool.low} to {pool.high}"
        return f"{count} process(es) making instances for {self.config.prepare.objective}"

    def write_card(self, job: Mapping[str, Any], report: Report) -> None:
        """The tokenizer as a Hugging Face folder, and README.md."""
        store, tokenizer = self.ledger.store, self._kept_tokenizer(job)
        for name, text in tokenizer.files.items():
            store.write(f"tokenizer/{name}", text.encode())
        facts = _metadata(self.config, job, tokenizer)
        rows = "\n".join(f"| {key} | {json.dumps(value)} |" for key, value in facts.items())
        card = _CARD.format(instances=report.vectors, tokens=report.tokens, facts=rows)
        store.write("README.md", card.encode())

    def estimate(self, plan: Plan, job: Mapping[str, Any]) -> Outlook:
        print(dump_yaml(public(self.config)), file=sys.stderr)
        return Outlook(len(plan.sources), plan.rows, len(plan.shards()), len(self.pending(plan)))


def _metadata(config: PrepareConfig, job: Mapping[str, Any], tokenizer: TokenizerFolder) -> dict[str, Any]:
    """The `raybert` entry of the shards' schema: what training needs to know of them."""
    return {
        "objective": config.prepare.objective,
        "max_length": config.prepare.max_length,
        "seed": config.prepare.seed,
        "vocabulary": tokenizer.size,
        "mask_id": tokenizer.mask,
        "pad_id": tokenizer.pad,
        "special_ids": tokenizer.special,
        "tokenizer": job["model"]["name"],
        "raybert": __version__,
    }


_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- pretraining
- raybert
---
# {instances:,} instances, {tokens:,} tokens

Made with [raybert](https://pypi.org/project/raybert/) for `raybert pretrain data.path=...`. One row of `data/` is one
instance (`ids`, special tokens included); documents that gave none lie in `_rejects/` with the reason; `tokenizer/` is
the tokenizer.

| setting | value |
| --- | --- |
{facts}
"""
