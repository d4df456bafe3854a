"""One exactly-once job: a corpus and a folder in, every shard done, a report out. A verb brings what differs.

`Job.go` is what `raybert embed` and `raybert prepare` have in common: compare the settings with those the folder was
started with, plan, lay the plan down, run what is not finished, add up.
"""

import contextlib
import hashlib
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from raybert.config import DataSettings, dump_yaml, flat, refuse_differences
from raybert.corpus.ledger import OURS, Ledger, Source
from raybert.corpus.paths import public, public_name
from raybert.corpus.plan import Plan, in_threads, make_plan
from raybert.corpus.pool import Pool, worker_pool
from raybert.corpus.progress import Progress
from raybert.corpus.readers import Shard
from raybert.corpus.report import Report, duplicate_ids, finish_report
from raybert.corpus.session import cluster_map, ray_session

_BIG_SCAN = 1 << 28  # bytes of new files to read through, above which the cluster does it
_CONFIG, _REPORT = f"{OURS}/config.yaml", f"{OURS}/report.json"

Pending = Mapping[str, tuple[Source, Shard]]


class Job(ABC):
    """One call of a verb. Ray is started when the first step needs it: a finished folder is seen without.

    `config` must have the groups `data`, `output` and `workers`; subclasses give the abstract methods.
    """

    verb: ClassVar[str]

    def __init__(self, config: Any, stack: contextlib.ExitStack) -> None:
        self.config, self._stack = config, stack
        self._started = time.monotonic()
        self.ledger = Ledger(config.output.path, owner=uuid.uuid4().hex[:12])

    # -- what a verb brings

    @abstractmethod
    def deciding_settings(self, config: Any) -> dict[str, Any]:
        """The settings on which the output depends: all but where things lie and how many work on it."""

    def became(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """What settings left to us became when the job began, by their dotted key."""
        return {}

    @abstractmethod
    def new_job(self, plan: Plan) -> tuple[dict[str, Any], dict[str, bytes]]:
        """What decides the output, found out once and kept with it; and the files that a resumed run needs."""

    @abstractmethod
    def check_model(self, job: Mapping[str, Any]) -> None:
        """Raise ValueError if the model of the settings is not that of the job."""

    @abstractmethod
    def work(self, plan: Plan, job: Mapping[str, Any]) -> Any:
        """The `runner.Work` of this verb."""

    @abstractmethod
    def describe(self, pool: Pool, job: Mapping[str, Any]) -> str:
        """For the line that a run begins with: who works on it, and how."""

    @abstractmethod
    def write_card(self, job: Mapping[str, Any], report: Report) -> None:
        """Write what tells a reader about the folder."""

    @abstractmethod
    def estimate(self, plan: Plan, job: Mapping[str, Any]) -> Any:
        """The answer to a dry run."""

    @property
    def reading(self) -> DataSettings:
        """What is read: `data`, as this verb means it."""
        return self.config.data

    def hint(self) -> str:
        """What may be wrong where too many rows are rejected."""
        return f"is data.text={self.config.data.text} the right column?"

    # -- what all have in common

    def go(self) -> Any:
        """Plan, do, report. Raises ValueError and RuntimeError as the verbs say."""
        job = self.ledger.job()
        if job is None:
            self.ledger.refuse_foreign_folder()
        else:
            self.refuse_other_settings(job)
        if not self.config.dry_run:
            self.ledger.settle()
        plan, files = self._plan(job), {}
        if job is None:
            if not plan.rows:
                where = ", ".join(map(public_name, self.config.data.paths))
                raise ValueError(f"data.path={where} holds no rows: there is nothing to {self.verb}")
            job, files = self.new_job(plan)
        else:
            self.check_model(job)
        if self.config.dry_run:
            return self.estimate(plan, job)
        if self._write_plan(plan, job, files):
            plan = self._plan(job)
        return self._run(plan, job)

    @cached_property
    def pool(self) -> Pool:
        """The workers. Connects to Ray."""
        self._stack.enter_context(ray_session())
        return worker_pool(self.config.workers)

    def pending(self, plan: Plan) -> Pending:
        """The shards that are not finished."""
        done = self.ledger.done()
        return {name: shard for name, shard in plan.shards().items() if name not in done}

    def refuse_other_settings(self, job: Mapping[str, Any]) -> None:
        """Raise ValueError if the settings would not give what the folder holds.

        A setting that now says what `auto` became then is no change.
        """
        # a setting that did not exist then had what is its default now
        was = {**flat(self.deciding_settings(type(self.config)())), **flat(job["requested"])}
        now = self.deciding_settings(self.config)
        refuse_differences(self.ledger.where, was, now, became=self.became(job))

    def read_kept(self, name: str) -> str:
        """A file of the job, named for its content. Raises ValueError if it was changed."""
        text = self.ledger.store.read(name).decode()
        if name_for(name.rpartition("/")[2].partition("-")[0], text) != name:
            raise ValueError(f"{self.ledger.where}/{name} was changed; restore it or use another output.path")
        return text

    def _plan(self, job: dict[str, Any] | None) -> Plan:
        return make_plan(self.reading, self.config.output, self.ledger, job, mapper=self._map)

    def _map(self, function: Any, items: list[Any]) -> list[Any]:
        if sum(file.size for file in items if file.format != "parquet") < _BIG_SCAN:
            return in_threads(function, items)
        assert self.pool  # connects
        return cluster_map(function, items)

    def _write_plan(self, plan: Plan, job: dict[str, Any], files: Mapping[str, bytes]) -> bool:
        """Lay down job and plan. Returns whether another driver's plan was in the way, and ours must be made again."""
        ledger, owner = self.ledger, self.ledger.owner
        if files:
            # before the job: a folder with a job has all that a resumed run needs
            for name, content in files.items():
                ledger.store.write(name, content, owner=owner)
            ledger.create_job(job)
            ledger.store.write(_CONFIG, dump_yaml(public(self.config)).encode(), owner=owner)
        ledger.replace(plan.void)
        ledger.drop_void()
        ledger.extend(list(plan.added))
        if not ledger.settle():
            return False
        ledger.drop_void()
        return True

    def _run(self, plan: Plan, job: Mapping[str, Any]) -> Report:
        progress, aside = Progress(plan.rows), {}
        pending = self.pending(plan)
        try:
            if pending:
                aside = self._do(plan, job, pending, progress)
        finally:
            progress.end()
            self.ledger.store.sweep(self.ledger.owner)
        return self._finish(plan, job, progress, aside)

    def _do(self, plan: Plan, job: Mapping[str, Any], pending: Pending, progress: Progress) -> dict[str, str]:
        """Run the shards. Returns those given up, with the reason."""
        from raybert.corpus.runner import run

        pool = self.pool.at_most(len(pending))
        work = self.work(plan, job)
        finished = self.ledger.commits(plan.shards().keys() - pending.keys())
        progress.start(finished.values(), self.describe(pool, job))
        aside: dict[str, str] = {}
        with contextlib.closing(run(work, self.ledger, pending, plan.files, pool)) as results:
            for shard in results:
                if shard.status in ("fatal", "replaced"):
                    raise RuntimeError(shard.why)
                if shard.status == "aside":
                    aside[shard.name] = shard.why
                progress.add(shard)
                self._check_rejects(progress.rejected, progress.reasons, plan.rows)
        return aside

    def _finish(
        self, plan: Plan, job: Mapping[str, Any], progress: Progress, aside: dict[str, str]
    ) -> Report:
        ledger = self.ledger
        commits = ledger.commits(ledger.done() & plan.shards().keys())
        repeated = duplicate_ids(ledger.store, sorted(commits)) if self.config.data.id else (0, [])
        report = finish_report(
            self.verb, plan, commits, aside, progress, repeated, self._started, ledger.where
        )
        report.check()
        self._check_rejects(report.rejected, report.reasons, plan.rows)
        self.write_card(job, report)
        ledger.store.write(_REPORT, report.to_json().encode(), owner=ledger.owner)
        if not aside:
            ledger.store.sweep()
        return report

    def _check_rejects(self, rejected: int, reasons: Mapping[str, int], rows: int) -> None:
        limit = self.config.output.max_rejects
        most = limit * rows if isinstance(limit, float) and limit < 1 else limit
        if most is not None and rejected > most:
            raise RuntimeError(
                f"{rejected:,} rows rejected (mostly: {max(reasons, key=reasons.get)}), more than "
                f"output.max_rejects={limit}: {self.hint()}"
            )


def name_for(kind: str, text: str) -> str:
    """Named for its content: a driver that loses the start of a job leaves the winner's alone."""
    return f"{OURS}/{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
