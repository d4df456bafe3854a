"""What every worker of a pretraining run does: read, step, watch, log, evaluate, save; and go on where it was.

All decisions are taken from figures that every rank has alike, or by rank 0 and told to all.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from raybert.config.training import PretrainConfig
from raybert.corpus.store import Store
from raybert.pretrain.stream import Cursor, GlobalBatch
from raybert.train.baselines import baselines
from raybert.train.checkpoint import Checkpoints, RunState, library_versions
from raybert.train.data import held_out, make_stream
from raybert.train.engine import Engine, EngineSettings
from raybert.train.export import CHECKPOINTS, export
from raybert.train.gather import Tensors, gather, load_weights, restore
from raybert.train.job import tokens_path
from raybert.train.pretraining_model import PretrainingModel
from raybert.train.progress import baseline_line, flops
from raybert.train.records import Records
from raybert.train.schedules import Schedule, phase_at
from raybert.train.shapes import run_model
from raybert.train.spikes import SpikeWatch, TrainingDiverged
from raybert.train.step import Figures, Micros, even_out

_DIGESTS = 16  # of the last batches, kept with a checkpoint
_DIGEST_RANGE = 2**62


class Run:
    """One rank's part of a run, from the newest checkpoint to the end.

    Args:
        config: the settings.
        job: what the driver resolved (see `raybert.train.job.make_job`).
        say: takes lines for the user; used by rank 0.
    """

    def __init__(
        self, config: PretrainConfig, job: dict[str, Any], device: Any, say: Callable[[str], object]
    ) -> None:
        self.config, self.train, self.job, self.device = config, config.train, job, device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.store = Store(config.output.path)
        self.checkpoints = Checkpoints(f"{config.output.path.rstrip('/')}/{CHECKPOINTS}")
        self.lengths = [phase["steps"] for phase in job["phases"]]
        self.steps = sum(self.lengths)
        self.streams = [make_stream(config, phase, "train", job["batch_tokens"]) for phase in job["phases"]]
        self.schedules = [Schedule(**phase["schedule"]) for phase in job["phases"]]
        self._reader, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._rewinds, self._saved_at = 0, time.monotonic()
        self.records = Records(self.store, config.track, job["requested"], say, active=self.rank == 0)
        self._held: dict[int, Micros] = {}
        self._baselines: dict[str, float] = {}

    def go(self) -> dict[str, Any]:
        """Train to the end. The final figures, on every rank. Raises TrainingDiverged."""
        self._start(self._newest())
        self.records.mark()
        while self.step < self.steps:
            found = self._one_step()
            if found is None:
                continue
            last = self.step == self.steps
            if last or self.step % self.train.log_every == 0:
                precision = self.job["precision"]
                self.records.log(
                    self.step, self.steps, found, lr=self.lr, device=self.device, precision=precision
                )
            every = self.train.evaluate.every
            evaluate = bool(every) and (last or self.step % every == 0)
            if evaluate:
                self._evaluate()
            if evaluate or self._save_is_due(last):  # what was evaluated is kept: it may be the best
                self._save()
        return self._finish()

    def _start(self, step: int | None, ahead: tuple[int, Cursor] | None = None) -> None:
        """From a checkpoint, or from nothing; `ahead` (phase, cursor) goes on with other data than it says."""
        tensors, state = (None, RunState(step=0)) if step is None else self.checkpoints.read(step)
        plain = run_model(
            self.config.model, self.job["tokens"], pairs=self.job["pairs"], seed=self.train.seed
        )
        self.job["model_config"] = plain.config.to_dict()
        if tensors is not None:
            load_weights(plain, tensors.weights)
        model = PretrainingModel(plain, padded=self.train.padded)
        self.engine = Engine(model, self._engine_settings(), device=self.device)
        if tensors is not None:
            restore(self.engine, tensors)
            self.records.say(f"going on from step {state.step:,}")
        self.step, self.skipped = state.step, list(state.skipped)
        self._saved_step = self.step if step is not None else -1
        place = dict(state.cursor)
        self.phase, self.cursor = int(place.pop("phase", 0)), Cursor(**place)
        if ahead is not None and ahead[0] == phase_at(self.lengths, self.step)[0]:
            self.phase, self.cursor = ahead
        self.loss, self.evaluation = state.loss, dict(state.evaluation)
        self._evaluated = self.step
        self._digests, self._known_digests = deque[int](maxlen=_DIGESTS), state.digests
        self._ahead: Future[GlobalBatch] | None = None
        spike = self.train.spike
        self.watch = SpikeWatch(spike.factor, spike.patience, spike.window)
        self.records.open(self.step)

    def _one_step(self) -> Figures | None:
        """One update; None where it was taken back."""
        phase, within = phase_at(self.lengths, self.step)
        if phase != self.phase:
            self.phase, self.cursor, self._ahead = phase, Cursor(), None
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
        stream = self.streams[self.phase]
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
        """Figures on the held-out shards of the phase: the same batches and masks each time."""
        phase = self.job["phases"][self.phase]
        if not phase["held"]:
            return
        if self.phase not in self._held:
            batch_tokens = self.job["batch_tokens"]
            held = held_out(self.config, phase, batch_tokens, self.rank, self.world)
            self._held[self.phase] = held
            vocabulary = self.engine.model.plain.config.vocab_size
            self._baselines = baselines(held, vocabulary, self.device)
            self.records.say(baseline_line(self.step, self._baselines))
        found = self.engine.evaluate(self._held[self.phase])
        figures = self.records.evaluation(self.step, found)
        self.evaluation, self._evaluated = {**figures, **self._baselines}, self.step

    def _save(self, *, again: bool = False) -> None:
        """A checkpoint of this step, if there is none; it is written while training goes on."""
        if self._saved_step == self.step and not again:
            return
        tensors = gather(self.engine)
        self._sum_digests()
        if tensors is not None:
            self._wait_for_writing()
            self._writing = self._writer.submit(self._write, tensors, self._state())
            self.records.history.write()
        self._saved_step, self._saved_at = self.step, time.monotonic()

    def _write(self, tensors: Tensors, state: RunState) -> None:
        self.checkpoints.write(tensors, state)
        self.checkpoints.prune(self.train.checkpoint.keep)

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
        )

    def _finish(self) -> dict[str, Any]:
        """The model as a plain folder, the curves beside it."""
        self._save()
        self._wait_for_writing()
        figures = {
            "steps": self.step,
            "loss": self.loss,
            **{f"held_out_{k}": v for k, v in self.evaluation.items()},
        }
        if self.rank == 0:
            folder = self.config.output.path.rstrip("/")
            tokens = tokens_path(self.config, len(self.lengths) - 1)
            export(folder, f"{folder}/model", step=self.step, tokens=tokens)
        self.records.close()
        dist.barrier()
        self.engine.close()
        return figures

    def _save_is_due(self, last: bool) -> bool:
        """At set steps, where a phase ends and, by rank 0's clock, after set minutes."""
        settings = self.train.checkpoint
        phase_ends = phase_at(self.lengths, self.step)[1] == 0
        if last or phase_ends or (settings.steps and self.step % settings.steps == 0):
            return True
        if self.step % self.train.log_every:
            return False
        return bool(self._agree(int(time.monotonic() - self._saved_at > 60 * settings.minutes)))

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
