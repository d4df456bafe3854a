"""What every worker of a run does, of pretraining and of a task: read, step, watch, log, evaluate, save; and go on.

All decisions are taken from figures that every rank has alike, or by rank 0 and told to all.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from raybert.config.finetune import FinetuneConfig
from raybert.config.training import PretrainConfig
from raybert.corpus.store import Store
from raybert.train.checkpoint import CHECKPOINTS, Checkpoints, RunState, library_versions
from raybert.train.engine import Engine, EngineSettings
from raybert.train.freezing import trainable_parameters
from raybert.train.gather import Tensors, begin, gather, restore
from raybert.train.progress import flops
from raybert.train.records import Records
from raybert.train.schedules import Schedule, phase_at
from raybert.train.spikes import SpikeWatch, TrainingDiverged
from raybert.train.step import Figures, even_out
from raybert.train.trained import GlobalBatch, Trained

_DIGESTS = 16  # of the last batches, kept with a checkpoint
_DIGEST_RANGE = 2**62
_LOOK_SECONDS = 5.0  # between looks for nodes that are to go: asking is a round trip of all workers, a notice 30 s or more


class Run:
    """One rank's part of a run, from the newest checkpoint to the end.

    Args:
        config: the settings.
        job: what the driver resolved (see `raybert.train.job` and `raybert.train.task_job`).
        trained: what differs between runs.
        say: takes lines for the user; used by rank 0.
        leaving: whether a node of the run is about to be taken away; all ranks ask at the same step.
    """

    def __init__(
        self,
        config: PretrainConfig | FinetuneConfig,
        job: dict[str, Any],
        trained: Trained,
        device: Any,
        say: Callable[[str], object],
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.train, self.job, self.device = config, config.train, job, device
        self.trained = trained
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.store = Store(config.output.path)
        self.checkpoints = Checkpoints(f"{config.output.path.rstrip('/')}/{CHECKPOINTS}")
        self.lengths = [phase["steps"] for phase in job["phases"]]
        self.steps = sum(self.lengths)
        self.schedules = [Schedule(**phase["schedule"]) for phase in job["phases"]]
        self._reader, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._rewinds, self._saved_at = 0, time.monotonic()
        self._leaving, self._warned, self._looked_at = leaving, False, time.monotonic()
        self.records = Records(self.store, config.track, job["requested"], say, active=self.rank == 0)

    def go(self) -> dict[str, Any]:
        """Train to the end. The final figures, on every rank. Raises TrainingDiverged."""
        self._start(self._newest())
        self.records.mark()
        while self.step < self.steps and not self._is_enough():
            found = self._one_step()
            if found is None:
                continue
            last = self.step == self.steps
            if last or self.step % self.train.log_every == 0:
                precision = self.job["precision"]
                self.records.log(
                    self.step, self.steps, found, lr=self.lr, device=self.device, precision=precision
                )
            every = self.trained.evaluate_every
            evaluate = bool(every) and (last or self.step % every == 0)
            if evaluate:
                self._evaluate()
            if evaluate or self._save_is_due(last):  # what was evaluated is kept: it may be the best
                self._save()
        return self._finish()

    def _start(self, step: int | None, ahead: tuple[int, Any] | None = None) -> None:
        """From a checkpoint, or from nothing; `ahead` (phase, cursor) goes on with other data than it says."""
        tensors, state = (None, RunState(step=0)) if step is None else self.checkpoints.read(step)
        model = self.trained.model(None if tensors is None else tensors.weights)
        self.parameters = trainable_parameters(model)  # ZeRO has not yet cut them up
        self.engine = Engine(
            model,
            self._engine_settings(),
            objective=self.trained.objective,
            groups=self.trained.groups(model),
            rate=self.trained.rate(model),
            around=self.trained.around(model),
            device=self.device,
        )
        if tensors is not None:
            restore(self.engine, tensors)
            self.records.say(f"going on from step {state.step:,}")
        else:
            begin(self.engine)
            self.records.say("{:,} of {:,} parameters are trained".format(*self.parameters))
        self.step, self.skipped = state.step, list(state.skipped)
        self._saved_step = self.step if step is not None else -1
        place = dict(state.cursor)
        self.phase = int(place.pop("phase", 0))
        self.cursor = self.trained.streams[self.phase].cursor(**place)
        if ahead is not None and ahead[0] == phase_at(self.lengths, self.step)[0]:
            self.phase, self.cursor = ahead
        self.loss, self.evaluation = state.loss, dict(state.evaluation)
        self._evaluated = self.step
        self.best: Mapping[str, Any] = dict(state.best)
        self._digests, self._known_digests = deque[int](maxlen=_DIGESTS), state.digests
        self._ahead: Future[GlobalBatch] | None = None
        spike = self.train.spike
        self.watch = SpikeWatch(spike.factor, spike.patience, spike.window)
        self.records.open(self.step)

    def _one_step(self) -> Figures | None:
        """One update; None where it was taken back."""
        phase, within = phase_at(self.lengths, self.step)
        if phase != self.phase:
            self.phase, self.cursor, self._ahead = phase, self.trained.streams[phase].cursor(), None
        batch = self._read()
        micros = even_out(batch.micro, batch.bins, self.world)
        self.lr = self.schedules[phase](within)
        found = self.engine.train(micros, lr=self.lr, seed=self.train.seed, step=self.step)
        self.step += 1
        self.cursor = batch.cursor
        self._digests.append(sum(micro.digest for _, micro in batch.micro) % _DIGEST_RANGE)
        self.records.count(found.tokens, flops(self.engine.model, [micro for _, micro in batch.micro]))
        problem = self.watch.add(found.loss) or self._bad_gradient(found)
        if problem and not (self.train.on_spike == "ignore" and math.isfinite(found.loss)):
            self._recover(problem)
            return None
        self.loss = found.loss if self.loss is None else 0.95 * self.loss + 0.05 * found.loss
        return found

    def _read(self) -> GlobalBatch:
        """This step's batch; the next one is made meanwhile."""
        stream = self.trained.streams[self.phase]
        batch = (
            self._ahead.result()
            if self._ahead
            else stream.read(self.cursor, rank=self.rank, world=self.world)
        )
        self._ahead = self._reader.submit(stream.read, batch.cursor, rank=self.rank, world=self.world)
        return batch

    def _bad_gradient(self, found: Figures) -> str | None:
        """Weights are spoilt by it; float16 alone skips such updates by itself. DeepSpeed calls its norm -1."""
        if self.job["precision"] == "float16" or 0 <= found.grad_norm < math.inf:
            return None
        return "the gradient is not finite"

    def _recover(self, problem: str) -> None:
        """Stop, or go back to before it began and on with the data after it (Chowdhery et al. 2022, section 5.1)."""
        self._wait_for_writing()
        text = f"step {self.step}: {problem}"
        if self.train.on_spike != "rewind":
            advice = "lower train.lr, or set train.on_spike=rewind"
            raise TrainingDiverged(f"{text}; {advice}; the last checkpoint is kept")
        if self._rewinds >= self.train.spike.rewinds:
            raise TrainingDiverged(f"{text}, after {self._rewinds} rewinds; lower train.lr")
        self._rewinds += 1
        good = self._newest(self.step - max(1, self.watch.high))
        self.records.say(f"{text}; back to step {good or 0}, on with other batches")
        self.engine.close()
        skipped = [*self.skipped, {"step": self.step, "to": asdict(self.cursor)}]
        if self.rank == 0:
            self.checkpoints.drop_after(good or 0)
        self._start(good, (self.phase, self.cursor))
        self.skipped = skipped
        if good is not None:
            self._save(again=True)  # a crash must not bring the skipped batches back
        self.records.mark()

    def _evaluate(self) -> None:
        """Figures on data that is not trained on; is this the best model yet?"""
        found = self.trained.evaluate(self.engine, self.phase)
        if found is None:
            return
        self.evaluation, self._evaluated = {**found.figures, **found.compared}, self.step
        self.records.evaluation(self.step, found)
        metric, more = self.trained.metric
        value = found.figures.get(metric, math.nan)
        best = self.best.get("value")
        if value == value and (best is None or (value > best if more else value < best)):
            self.best = {"step": self.step, "metric": metric, "value": value, "worse": 0}
        elif self.best:
            self.best = {**self.best, "worse": self.best["worse"] + 1}

    def _is_enough(self) -> bool:
        """No evaluation was better for as long as the settings are patient."""
        patience = self.trained.patience
        return patience is not None and self.best.get("worse", 0) >= patience

    def _save(self, *, again: bool = False) -> None:
        """A checkpoint of this step, if there is none; it is written while training goes on."""
        if self._saved_step == self.step and not again:
            return
        tensors = gather(self.engine)
        self._sum_digests()
        if tensors is not None:
            self._wait_for_writing()
            self._writing = self._writer.submit(self._write, tensors, self._state(), self.best.get("step"))
            self.records.history.write()
        self._saved_step, self._saved_at = self.step, time.monotonic()

    def _write(self, tensors: Tensors, state: RunState, best: int | None) -> None:
        self.checkpoints.write(tensors, state)
        self.checkpoints.prune(self.train.checkpoint.keep, best)

    def _wait_for_writing(self) -> None:
        """Until the last checkpoint is complete; what went wrong with it is raised here."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _sum_digests(self) -> None:
        """A global batch's digest is the sum of its micro batches', whichever ranks had them."""
        own = torch.tensor(list(self._digests), dtype=torch.int64, device=self.device)
        dist.all_reduce(own)
        summed = [value % _DIGEST_RANGE for value in own.tolist()]
        self._known_digests = [*self._known_digests, *summed][-_DIGESTS:]
        self._digests.clear()

    def _state(self) -> RunState:
        return RunState(
            step=self.step,
            cursor={"phase": self.phase, **asdict(self.cursor)},
            digests=self._known_digests,
            loss=self.loss,
            evaluation=self.evaluation if self._evaluated == self.step else {},
            job=self.job,
            world=self.world,
            versions=library_versions(),
            skipped=self.skipped,
            best=self.best,
        )

    def _finish(self) -> dict[str, Any]:
        """The model as a plain folder, the curves beside it."""
        self._save()
        self._wait_for_writing()
        dist.barrier()  # rank 0 wrote; every rank may read now
        if self._is_enough():
            worse = self.best["worse"]
            self.records.say(
                f"stopped at step {self.step}: {worse} evaluation{'s' * (worse > 1)} without a better one"
            )
        step = self.best.get("step", self.step) if self.trained.export_best else self.step
        figures = {"steps": self.step, "loss": self.loss, **self._held_out(step)}
        figures |= {f"held_out_{k}": v for k, v in self.trained.finished(step, self.device).items()}
        figures |= dict(zip(("trained_parameters", "parameters"), self.parameters, strict=True))
        if self.rank == 0:
            self.trained.export(step)
        self.records.close()
        dist.barrier()
        self.engine.close()
        return figures

    def _held_out(self, step: int) -> dict[str, Any]:
        """The figures of the model that is exported."""
        if step == self.step:
            return {f"held_out_{k}": v for k, v in self.evaluation.items()}
        evaluation = self.checkpoints.record(step)["evaluation"]
        return {"best_step": step, **{f"held_out_{k}": v for k, v in evaluation.items()}}

    def _save_is_due(self, last: bool) -> bool:
        """At set steps, where a phase ends, after set minutes by rank 0's clock, and before a node goes."""
        settings = self.train.checkpoint
        phase_ends = phase_at(self.lengths, self.step)[1] == 0
        if last or phase_ends or (settings.steps and self.step % settings.steps == 0):
            return True
        now = time.monotonic()
        late, look = now - self._saved_at > 60 * settings.minutes, now - self._looked_at > _LOOK_SECONDS
        told = self._agree(late + 2 * look)
        return bool(told & 1) or (bool(told & 2) and self._loses_a_node())

    def _loses_a_node(self) -> bool:
        """Whether the notice of a node's end has come, the first time that it is seen. For all ranks at the same step."""
        self._looked_at = time.monotonic()
        if self._warned or not self._leaving():
            return False
        self._warned = True
        self.records.say(f"step {self.step:,}: a node is about to be taken away, a checkpoint before")
        return True

    def _newest(self, at_most: int | None = None) -> int | None:
        """The newest complete checkpoint (up to a step), as rank 0 sees it."""
        self._wait_for_writing()
        steps = (
            [s for s in self.checkpoints.steps() if at_most is None or s <= at_most] if self.rank == 0 else []
        )
        found = self._agree(max(steps, default=-1))
        return None if found < 0 else found

    def _agree(self, number: int) -> int:
        """Rank 0's number."""
        told = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.broadcast(told, 0)
        return int(told)

    def _engine_settings(self) -> EngineSettings:
        t = self.train
        return EngineSettings(
            zero=t.zero,
            offload=t.offload,
            precision=self.job["precision"],
            clip=t.clip,
            recompute=t.recompute,
            optimizer=t.optimizer,
            weight_decay=t.weight_decay,
        )
