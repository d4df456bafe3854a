"""raybert embed: a corpus in, every row exactly once in Parquet. Thin over the runner and the encoder.

The driver needs no torch: models are loaded by workers only.
"""

import contextlib
import hashlib
import os
import sys
import time
import uuid
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa

from raybert.config import EmbedConfig, dump_yaml, load, require
from raybert.corpus.filesystems import public_uri
from raybert.corpus.ledger import OURS, Ledger, Source
from raybert.corpus.plan import Plan, in_threads, make_plan, type_from, type_text
from raybert.corpus.progress import Progress
from raybert.corpus.readers import Shard
from raybert.corpus.report import Report, duplicate_ids, finish_report
from raybert.corpus.session import Pool, brings_own_ray, cluster_map, ray_session, warm_up, worker_pool
from raybert.corpus.texts import text_columns, wanted_columns
from raybert.corpus.vectors import schema, to_parquet, write_card
from raybert.embed_shard import LoadEncoder, PrepareShard, vector_metadata
from raybert.encoder.tokenizing import TextTokenizer
from raybert.estimate import Estimate, estimate, sample_texts
from raybert.resolve import LocalResolve, resolve

_BIG_SCAN = 1 << 28  # bytes of new files to read through, above which the cluster does it
_CONFIG, _REPORT = f"{OURS}/config.yaml", f"{OURS}/report.json"

Pending = Mapping[str, tuple[Source, Shard]]


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
    config = _absolute(config)
    with contextlib.ExitStack() as stack:
        return _Run(config, stack).go()


class _Run:
    """One call of `embed`. Ray is started when the first step needs it: a finished folder is seen without."""

    def __init__(self, config: EmbedConfig, stack: contextlib.ExitStack) -> None:
        self._config, self._stack = config, stack
        self._started = time.monotonic()
        self._ledger = Ledger(config.output.path, owner=uuid.uuid4().hex[:12])
        self._tokenizer_json: str | None = None

    def go(self) -> Report | Estimate:
        """Plan, resolve, do, report."""
        job = self._ledger.job()
        if job is not None:
            refuse_other_settings(self._config, job, self._ledger.where)
        else:
            self._ledger.refuse_foreign_folder()
        if not self._config.dry_run:
            self._ledger.settle()
        plan = make_plan(self._config.data, self._config.output, self._ledger, job, mapper=self._map)
        if job is None:
            if not plan.rows:
                raise ValueError(
                    f"data.path={_public(self._config).data.path} holds no rows: there is nothing to embed"
                )
            job = self._new_job(plan)
        elif self._model_has_another_name(job):
            self._refuse_other_weights(job)
        if self._config.dry_run:
            return self._estimate(plan, job)
        if self._write_plan(plan, job):
            plan = make_plan(self._config.data, self._config.output, self._ledger, job, mapper=self._map)
        progress, aside = Progress(plan.rows), {}
        pending = self._pending(plan)
        try:
            if pending:
                aside = self._do(plan, job, pending, progress)
        finally:
            progress.end()
            self._ledger.store.sweep(self._ledger.owner)
        return self._finish(plan, job, progress, aside)

    @cached_property
    def _pool(self) -> Pool:
        """The workers. Connects to Ray."""
        self._stack.enter_context(ray_session())
        return worker_pool(self._config.workers)

    def _map(self, function: Any, items: list[Any]) -> list[Any]:
        if sum(file.size for file in items if file.format != "parquet") < _BIG_SCAN:
            return in_threads(function, items)
        assert self._pool  # connects
        return cluster_map(function, items)

    def _pending(self, plan: Plan) -> Pending:
        done = self._ledger.done()
        return {name: shard for name, shard in plan.shards().items() if name not in done}

    def _new_job(self, plan: Plan) -> dict[str, Any]:
        """What decides the numbers, found out on a worker and kept with the output."""
        sample = sample_texts(self._config, plan) if self._config.output.dtype == "int8" else []
        resolved, self._tokenizer_json = self._resolve(self._config, sample)
        return {
            "requested": deciding_settings(self._config),
            "tokenizer": _tokenizer_file(self._tokenizer_json),
            "model": {"name": public_name(self._config.model.name), "revision": self._config.model.revision},
            "resolved": resolved,
            "kept": list(plan.kept),
            "types": {name: type_text(kind) for name, kind in plan.types.items()},
            "carried": plan.carried,
            "cut": plan.cut,
        }

    def _resolve(self, config: EmbedConfig, sample: list[str]) -> tuple[dict[str, Any], str]:
        """On a worker, or beside a private Ray while that starts."""
        if not brings_own_ray():
            return resolve(config, self._pool, sample)
        with LocalResolve(config, sample) as probe:
            assert self._pool  # connects
            warm_up()
            return probe.result()

    def _model_has_another_name(self, job: Mapping[str, Any]) -> bool:
        model = self._config.model
        return (public_name(model.name), model.revision) != (job["model"]["name"], job["model"]["revision"])

    def _refuse_other_weights(self, job: Mapping[str, Any]) -> None:
        """A model may move; its weights may not change."""
        # float32: int8 would want texts to calibrate with
        output = self._config.output.model_copy(update={"dtype": "float32"})
        plain = self._config.model_copy(update={"output": output})
        was, now = job["resolved"]["digest"], self._resolve(plain, [])[0]["digest"]
        if was != now:
            raise ValueError(
                f"{self._ledger.where} was started with the weights of {job['model']['name']} (digest {was[:12]}), "
                f"{public_name(self._config.model.name)} has others (digest {now[:12]}); use another output.path"
            )

    def _write_plan(self, plan: Plan, job: dict[str, Any]) -> bool:
        """Lay down job and plan. Returns whether another driver's plan was in the way, and ours must be made again."""
        ledger, owner = self._ledger, self._ledger.owner
        if self._tokenizer_json is not None:
            # before the job: a folder with a job has all that a resumed run needs
            ledger.store.write(job["tokenizer"], self._tokenizer_json.encode(), owner=owner)
            ledger.create_job(job)
            ledger.store.write(_CONFIG, dump_yaml(_public(self._config)).encode(), owner=owner)
        ledger.replace(plan.void)
        ledger.drop_void()
        ledger.extend(list(plan.added))
        if not ledger.settle():
            return False
        ledger.drop_void()
        return True

    def _do(self, plan: Plan, job: Mapping[str, Any], pending: Pending, progress: Progress) -> dict[str, str]:
        """Run the shards. Returns those given up, with the reason."""
        from raybert.corpus.runner import Work, run

        pool = self._pool.at_most(len(pending))
        config, resolved = self._config, job["resolved"]
        _check_storable(output_schema(config, job))
        work = Work(
            columns=wanted_columns(config.data, list(plan.kept)),
            types=plan.types,
            text_columns=text_columns(config.data),
            max_chars=config.data.max_chars,
            prepare=self._prepare(job),
            worker=LoadEncoder(config.model, resolved, output_schema(config, job), config.chunk.combine),
        )
        finished = self._ledger.commits(plan.shards().keys() - pending.keys())
        progress.start(finished.values(), _pool_line(pool, resolved))
        limit = _reject_limit(config.output.max_rejects, plan.rows)
        aside: dict[str, str] = {}
        with contextlib.closing(run(work, self._ledger, pending, plan.files, pool)) as results:
            for shard in results:
                if shard.status in ("fatal", "replaced"):
                    raise RuntimeError(shard.why)
                if shard.status == "aside":
                    aside[shard.name] = shard.why
                progress.add(shard)
                if limit is not None and progress.rejected > limit:
                    raise RuntimeError(_too_many_rejects(progress.rejected, progress.reasons, config))
        return aside

    def _prepare(self, job: Mapping[str, Any]) -> PrepareShard:
        resolved = job["resolved"]
        text = self._tokenizer_json or self._ledger.store.read(job["tokenizer"]).decode()
        if _tokenizer_file(text) != job["tokenizer"]:
            raise ValueError(
                f"{self._ledger.where}/{job['tokenizer']} was changed; restore it or use another output.path"
            )
        tokenizer = TextTokenizer(text, max_length=resolved["max_length"], prompt=resolved["prompt"])
        return PrepareShard(self._config.data, self._config.chunk, tuple(job["kept"]), tokenizer)

    def _finish(
        self, plan: Plan, job: Mapping[str, Any], progress: Progress, aside: dict[str, str]
    ) -> Report:
        ledger = self._ledger
        commits = ledger.commits(ledger.done() & plan.shards().keys())
        repeated = duplicate_ids(ledger.store, sorted(commits)) if self._config.data.id else (0, [])
        report = finish_report(plan, commits, aside, progress, repeated, self._started, ledger.where)
        report.check()
        limit = _reject_limit(self._config.output.max_rejects, plan.rows)
        if limit is not None and report.rejected > limit:
            raise RuntimeError(_too_many_rejects(report.rejected, report.reasons, self._config))
        write_card(ledger.store, _metadata(self._config, job), report.vectors)
        ledger.store.write(_REPORT, report.to_json().encode(), owner=ledger.owner)
        if not aside:
            ledger.store.sweep()
        return report

    def _estimate(self, plan: Plan, job: Mapping[str, Any]) -> Estimate:
        print(dump_yaml(_public(self._config)), file=sys.stderr)
        return estimate(
            self._config, plan, self._pending(plan), self._prepare(job), job["resolved"], self._pool
        )


def _absolute(config: EmbedConfig) -> EmbedConfig:
    """Local paths mean the same on every process, whatever its working directory."""
    model, output = config.model, config.output
    if os.path.isdir(os.path.expanduser(model.name)):
        model = model.model_copy(update={"name": os.path.abspath(os.path.expanduser(model.name))})
    if "://" not in output.path:
        output = output.model_copy(update={"path": os.path.abspath(os.path.expanduser(output.path))})
    return config.model_copy(update={"model": model, "output": output})


def public_name(name: str) -> str:
    """A model's name without credentials."""
    return public_uri(name) if "://" in name else name


def _public(config: EmbedConfig) -> EmbedConfig:
    """The settings as they may be shown and stored: URLs without credentials."""
    paths = [public_name(path) for path in config.data.paths]
    data = config.data.model_copy(update={"path": paths[0] if isinstance(config.data.path, str) else paths})
    model = config.model.model_copy(update={"name": public_name(config.model.name)})
    output = config.output.model_copy(update={"path": public_name(config.output.path)})
    return config.model_copy(update={"data": data, "model": model, "output": output})


def _tokenizer_file(text: str) -> str:
    """Named for its content: a driver that loses the start of a job leaves the winner's alone."""
    return f"{OURS}/tokenizer-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def deciding_settings(config: EmbedConfig) -> dict[str, Any]:
    """The settings on which the output depends: all but where things lie and how many work on it."""
    values = config.model_dump(mode="json", exclude={"workers": True, "dry_run": True, "data": {"path"}})
    for name in ("name", "revision"):  # the digest of the weights decides, not what they are called
        values["model"].pop(name)
    values["output"] = {name: values["output"][name] for name in ("dtype", "rows_per_shard")}
    return values


def refuse_other_settings(config: EmbedConfig, job: Mapping[str, Any], path: str) -> None:
    """Raise ValueError if `config` would not give the numbers that the folder holds.

    A setting that now says what `auto` became then is no change.
    """
    now = _flat(deciding_settings(config))
    # a setting that did not exist then had what is its default now
    was = _flat(deciding_settings(EmbedConfig())) | _flat(job["requested"])
    became = {f"model.{name}": value for name, value in job["resolved"].items()}
    became["batch_tokens"] = job["resolved"]["batch_tokens"]
    differ = [
        f"{key}={now.get(key)!r} (was {was.get(key)!r})"
        for key in sorted(was.keys() | now.keys())
        if now.get(key) != was.get(key) and not (key in became and now.get(key) == became[key])
    ]
    if differ:
        raise ValueError(
            f"{path} was started with other settings: {', '.join(differ)}; "
            "use the old settings to go on, or another output.path to start afresh"
        )


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


def _check_storable(schema: pa.Schema) -> None:
    try:
        to_parquet(schema.empty_table())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"data.columns: Parquet cannot hold one of the kept columns: {error}") from None


def _metadata(config: EmbedConfig, job: Mapping[str, Any]) -> dict[str, Any]:
    return vector_metadata(job["resolved"], job["model"]["name"], config.data, config.chunk)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def _reject_limit(limit: int | float | None, rows: int) -> float | None:
    return limit * rows if isinstance(limit, float) and limit < 1 else limit


def _too_many_rejects(rejected: int, reasons: Mapping[str, int], config: EmbedConfig) -> str:
    return (
        f"{rejected:,} rows rejected (mostly: {max(reasons, key=reasons.get)}), more than "
        f"output.max_rejects={config.output.max_rejects}: is data.text={config.data.text} the right column?"
    )


def _pool_line(pool: Pool, resolved: Mapping[str, Any]) -> str:
    count = f"{pool.low}" if pool.low == pool.high else f"{pool.low} to {pool.high}"
    on = f"{pool.gpus:g} GPU" if pool.gpus else f"{resolved['threads']} CPU thread(s)"
    kernels = resolved.get("kernels", "transformers")
    note = f" (not faster: {resolved['kernels_note']})" if resolved.get("kernels_note") else ""
    return f"{count} encoder(s), {on} each, computing in {resolved['dtype']} with {kernels} kernels{note}"
