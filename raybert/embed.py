"""raybert embed: a corpus in, every row exactly once in Parquet. Thin over the runner and the encoder.

The driver needs no torch: models are loaded by workers only.
"""

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from raybert.config import EmbedConfig, dump_yaml, load, require
from raybert.corpus.job import Job, name_for
from raybert.corpus.paths import absolute, public, public_name
from raybert.corpus.plan import Plan, type_from, type_text
from raybert.corpus.pool import Pool
from raybert.corpus.report import Report
from raybert.corpus.session import brings_own_ray
from raybert.corpus.texts import text_columns, wanted_columns
from raybert.corpus.vectors import check_storable, schema, write_card
from raybert.embed_shard import LoadEncoder, PrepareShard, vector_metadata
from raybert.encoder.tokenizing import TextTokenizer
from raybert.estimate import Estimate, estimate, sample_texts
from raybert.resolve import LocalResolve, resolve


def main(config: EmbedConfig) -> int:
    """The command: run, print the report. Returns 0, or 1 if shards had to be given up."""
    report = embed(config)
    print(report)
    return 1 if report.aside else 0


def embed(config: EmbedConfig | Mapping[str, Any]) -> Report | Estimate:
    """Embed a corpus into a folder; what the folder already holds is not done again. An Estimate for a dry run.

    Raises:
        ValueError: settings or input that cannot be used, or that changed since the folder was started.
        RuntimeError: the run failed; what was committed stays, and the same call goes on from there.
    """
    if not isinstance(config, EmbedConfig):
        config = load(EmbedConfig, settings=config)
    require(config, "model.name", "data.path", "output.path")
    with contextlib.ExitStack() as stack:
        return _Embedding(absolute(config), stack).go()


class _Embedding(Job):
    verb = "embed"

    def __init__(self, config: EmbedConfig, stack: contextlib.ExitStack) -> None:
        super().__init__(config, stack)
        self._tokenizer_json: str | None = None

    def deciding_settings(self, config: EmbedConfig) -> dict[str, Any]:
        return deciding_settings(config)

    def became(self, job: Mapping[str, Any]) -> dict[str, Any]:
        became = {f"model.{name}": value for name, value in job["resolved"].items()}
        return became | {"batch_tokens": job["resolved"]["batch_tokens"]}

    def new_job(self, plan: Plan) -> tuple[dict[str, Any], dict[str, bytes]]:
        sample = sample_texts(self.config, plan) if self.config.output.dtype == "int8" else []
        resolved, text = self._resolve(self.config, sample)
        self._tokenizer_json = text
        job = {
            "requested": deciding_settings(self.config),
            "tokenizer": name_for("tokenizer", text),
            "model": {"name": public_name(self.config.model.name), "revision": self.config.model.revision},
            "resolved": resolved,
            "kept": list(plan.kept),
            "types": {name: type_text(kind) for name, kind in plan.types.items()},
            "carried": plan.carried,
            "cut": plan.cut,
        }
        return job, {job["tokenizer"]: text.encode()}

    def _resolve(self, config: EmbedConfig, sample: list[str]) -> tuple[dict[str, Any], str]:
        """On a worker, or beside a private Ray while that starts."""
        if not brings_own_ray():
            return resolve(config, self.pool, sample)
        with LocalResolve(config, sample) as probe:
            assert self.pool  # connects
            return probe.result()

    def check_model(self, job: Mapping[str, Any]) -> None:
        """A model may move; its weights may not change."""
        model = self.config.model
        if (public_name(model.name), model.revision) == (job["model"]["name"], job["model"]["revision"]):
            return  # workers compare the digest
        # float32: int8 would want texts to calibrate with
        output = self.config.output.model_copy(update={"dtype": "float32"})
        plain = self.config.model_copy(update={"output": output})
        was, now = job["resolved"]["digest"], self._resolve(plain, [])[0]["digest"]
        if was != now:
            raise ValueError(
                f"{self.ledger.where} was started with the weights of {job['model']['name']} (digest {was[:12]}), "
                f"{public_name(model.name)} has others (digest {now[:12]}); use another output.path"
            )

    def work(self, plan: Plan, job: Mapping[str, Any]) -> Any:
        from raybert.corpus.runner import Work

        data, output = self.config.data, output_schema(self.config, job)
        check_storable(output)
        return Work(
            columns=wanted_columns(data, list(plan.kept)),
            types=plan.types,
            text_columns=text_columns(data),
            max_chars=data.max_chars,
            prepare=self._prepare(job),
            worker=LoadEncoder(self.config.model, job["resolved"], output, self.config.chunk.combine),
        )

    def _prepare(self, job: Mapping[str, Any]) -> PrepareShard:
        resolved = job["resolved"]
        text = self._tokenizer_json or self.read_kept(job["tokenizer"])
        tokenizer = TextTokenizer(text, max_length=resolved["max_length"], prompt=resolved["prompt"])
        return PrepareShard(self.config.data, self.config.chunk, tuple(job["kept"]), tokenizer)

    def describe(self, pool: Pool, job: Mapping[str, Any]) -> str:
        resolved = job["resolved"]
        count = f"{pool.low}" if pool.low == pool.high else f"{pool.low} to {pool.high}"
        on = f"{pool.gpus:g} GPU" if pool.gpus else f"{resolved['threads']} CPU thread(s)"
        kernels = resolved.get("kernels", "transformers")
        note = f" (not faster: {resolved['kernels_note']})" if resolved.get("kernels_note") else ""
        return f"{count} encoder(s), {on} each, computing in {resolved['dtype']} with {kernels} kernels{note}"

    def write_card(self, job: Mapping[str, Any], report: Report) -> None:
        write_card(self.ledger.store, _metadata(self.config, job), report.vectors)

    def estimate(self, plan: Plan, job: Mapping[str, Any]) -> Estimate:
        print(dump_yaml(public(self.config)), file=sys.stderr)
        return estimate(self.config, plan, self.pending(plan), self._prepare(job), job["resolved"], self.pool)


def deciding_settings(config: EmbedConfig) -> dict[str, Any]:
    """The settings on which the vectors depend."""
    values = config.model_dump(mode="json", exclude={"workers": True, "dry_run": True, "data": {"path"}})
    for name in ("name", "revision"):  # the digest of the weights decides, not what they are called
        values["model"].pop(name)
    values["output"] = {name: values["output"][name] for name in ("dtype", "rows_per_shard")}
    return values


def output_schema(config: EmbedConfig, job: Mapping[str, Any]) -> pa.Schema:
    """Schema of the output files, metadata included."""
    types = {name: type_from(text) for name, text in job["types"].items()}
    return schema(
        {name: types[name] for name in job["kept"]},
        types[config.data.id] if config.data.id else pa.string(),
        _metadata(config, job),
        chunked=config.chunk.size is not None and config.chunk.combine == "none",
        carried={key.encode(): value.encode() for key, value in job["carried"].items()},
    )


def _metadata(config: EmbedConfig, job: Mapping[str, Any]) -> dict[str, Any]:
    return vector_metadata(job["resolved"], job["model"]["name"], config.data, config.chunk)
