"""Fine-tuning for a task, as the loop runs it."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from raybert.config.finetune import FinetuneConfig
from raybert.corpus.store import Store
from raybert.encoder.adapter_folder import way_to
from raybert.tasks.generation import TARGET_TOKENIZER
from raybert.tasks.heads import record_head
from raybert.tasks.known import data_side, model_side
from raybert.tasks.storage import from_bytes
from raybert.train.checkpoint import CHECKPOINTS, Checkpoints, RunState
from raybert.train.example_stream import ExampleMicro, ExampleStream, in_order, nothing
from raybert.train.export import model_card, write_folder
from raybert.train.forward import PACKED_FAMILIES
from raybert.train.freezing import trainable_parameters
from raybert.train.gather import load_weights
from raybert.train.packed import pack
from raybert.train.ranking_objective import RankingObjective
from raybert.train.step import even_out
from raybert.train.task_job import EXAMPLES, TOKENIZER, groups_of
from raybert.train.task_models import make_plain
from raybert.train.task_objective import TaskObjective
from raybert.train.task_tables import EARLIER
from raybert.train.trained import Evaluation
from raybert.train.writer import Writer

_SHOWN = 6  # figures in a line of an evaluation


class Finetuning:
    """See `raybert.train.trained.Trained`.

    Args:
        config: the settings.
        job: what the driver resolved (see `raybert.train.task_job`).
        member: its name where it is one of several tasks; its examples lie in a folder of that name.
    """

    def __init__(self, config: FinetuneConfig, job: dict[str, Any], member: str = "") -> None:
        if hasattr(data_side(config.task.name), "settle"):  # the driver found out what defaults stand for
            task = type(config.task).model_validate(job["settings"])
            config = config.model_copy(update={"task": task})
        self._config, self._job, self._member = config, job, member
        self._store = Store(config.output.path)
        self._data, self._models = data_side(config.task.name), model_side(config.task.name)
        self._padded = (
            config.train.padded or job["family"] not in PACKED_FAMILIES or config.adapter.name == "prefix"
        )
        self._examples = f"{EXAMPLES}/{member}".rstrip("/")
        train = from_bytes(self._store.read(f"{self._examples}/train.parquet"))
        stream = ExampleStream(
            train,
            seed=config.train.seed,
            batch_size=config.train.batch_size,
            batch_tokens=job["batch_tokens"],
            parts=job["parts"],
            padded=self._padded,
            groups=groups_of(config.task.name),
        )
        self.streams = [stream]
        self.objective = self._objective(nothing(train))
        evaluate = config.train.evaluate
        every = stream.steps_per_epoch if evaluate.every is None else evaluate.every
        self.evaluate_every = every if job["rows"].get("validation") else 0
        self.metric = (job["metric"], job["metric"] not in ("loss", "mse"))
        self.patience = evaluate.patience
        self.export_best = evaluate.export == "best"
        self._held: tuple[list[Any], int] | None = None
        self._generate = getattr(config.task, "generate", "never") if self.evaluate_every else "never"
        self._finished: dict[str, float] = {}
        self._made_writer: Writer | None = None
        self._adapted: Any = None

    def model(self, weights: Mapping[str, Any] | None) -> nn.Module:
        """The named model with a head for the task, what is frozen and what is added to it."""
        self._adapted, plain = self.plain(weights)
        return self.wrapped(plain)

    def wrapped(self, plain: PreTrainedModel) -> nn.Module:
        """What computes the loss of a plain model."""
        return self._models.Model(plain, self._config.task, self._config.regularize, padded=self._padded)

    def _objective(self, empty: ExampleMicro) -> TaskObjective:
        model, task = self._models.Model, self._config.task
        given = model.sums_type(task), model.targets, empty
        # cosine regression is a loss of single rows, as those of other tasks
        if hasattr(model, "share") and getattr(task, "loss", "") != "cosine":
            return RankingObjective(*given, share=partial(model.share, task), cache=task.grad_cache)
        adversarial = self._config.adversarial
        return TaskObjective(*given, None if adversarial.name == "none" else adversarial)

    def groups(self, model: nn.Module) -> list[dict[str, Any]] | None:
        """By depth where the rates of layers differ."""
        train, freeze = self._config.train, self._config.freeze
        if train.layer_decay == 1 and not freeze.gradual:
            return None
        from raybert.train.layer_decay import decayed_groups

        return decayed_groups(_plain_of(model), train.layer_decay, train.weight_decay)

    def rate(self, model: nn.Module) -> Any:
        """(group, step) -> the factor of its learning rate."""
        if not self._config.freeze.gradual:
            return None
        from raybert.train.freezing import unfreeze_schedule

        factor = unfreeze_schedule(_plain_of(model), self.streams[0].steps_per_epoch)
        return lambda group, step: group["lr_scale"] * factor(group["depth"], step)

    def around(self, model: nn.Module) -> Any | None:
        """AdaLoRA lets ranks fall after every update; its matrices are kept near to orthogonal in the loss. Elastic weights
        are another such term."""
        if self._config.regularize.ewc:
            from raybert.train.elastic import elastic_weights

            elastic = elastic_weights(
                lambda: self.wrapped(self.plain(None)[1]),
                lambda: from_bytes(self._store.read(f"{EXAMPLES}/{EARLIER}.parquet")),
                self._store,
                strength=self._config.regularize.ewc,
                seed=self._config.train.seed,
            )
            self.objective.penalty = lambda: elastic.penalty(model)
        if self._config.adapter.name != "adalora":
            return None
        from raybert.train.adalora import RankAllocation, orthogonality

        self.objective.penalty = lambda: orthogonality(_plain_of(model))
        return RankAllocation(self._adapted)

    @torch.no_grad()
    def evaluate(self, engine: Any, phase: int) -> Evaluation | None:
        """The task's figures on the validation rows, those of all ranks together."""
        if not self._job["rows"].get("validation"):
            return None
        own, bins = self._validation()
        scores = self._data.Scores(self._job["labels"], self._config.task)
        totals, targets = torch.zeros(1, dtype=torch.float64), 0
        engine.deepspeed.eval()
        for entry in even_out(own, bins, dist.get_world_size()):
            micro = self.objective.empty if entry is None else entry[1]
            batch = pack(replace(micro, member=self._member), engine.device)
            sums, outputs = engine.deepspeed(batch, outputs=True)
            if entry is None:
                continue
            totals += sums[0].double().cpu()
            targets += self.objective.targets(micro)[0]
            scores.add({name: _in_order(value, micro) for name, value in outputs.items()}, micro.examples)
            if self._generate == "evaluations":
                scores.add(self._writer()(engine.model, micro.examples), micro.examples)
        loss = _summed(
            torch.stack([totals[0], torch.tensor(float(targets), dtype=torch.float64)]), engine.device
        )
        self._merge(scores, engine.device)
        figures = {"loss": loss[0] / max(1.0, loss[1]), **scores.result()}
        if self._job["metric"] not in figures:
            raise ValueError(
                f"train.evaluate.metric={self._job['metric']}: the task has {', '.join(figures)}"
            )
        return Evaluation("validation", figures, _line(figures, self._job["metric"]))

    def finished(self, step: int, device: Any) -> Mapping[str, float]:
        """The scores of what the model writes for the validation rows, where they are not found at every evaluation."""
        if self._generate != "end":
            return {}
        weights = Checkpoints(f"{self._config.output.path.rstrip('/')}/{CHECKPOINTS}").weights(step)
        model: Any = self.wrapped(self.plain(weights)[1]).to(device).eval()
        if self._job["precision"] == "bfloat16":
            model.autocast = torch.bfloat16
        scores = self._data.Scores(self._job["labels"], self._config.task)
        for _, micro in self._validation()[0]:
            scores.add(self._writer()(model, micro.examples), micro.examples)
        self._merge(scores, device)
        self._finished = scores.result()
        return self._finished

    def export(self, step: int) -> None:
        """The finished model: a plain folder, or with some adapters what is added to its base."""
        folder = self._config.output.path.rstrip("/")
        checkpoints = Checkpoints(f"{folder}/{CHECKPOINTS}")
        state = RunState.of(checkpoints.record(step))
        state = replace(state, evaluation={**state.evaluation, **self._finished})
        self.write(checkpoints.weights(step), state, f"{folder}/model")

    def write(self, weights: Mapping[str, Any], state: RunState, target: str) -> None:
        """A finished model of these weights and this state as a folder."""
        plain, _ = self.plain(weights)
        trained, every = trainable_parameters(plain)
        with tempfile.TemporaryDirectory() as made:
            kind = self._save(plain, made, target)
            for part in (".", TARGET_TOKENIZER):
                for name in self._store.sizes(f"{TOKENIZER}/{part}"):
                    Path(made, part).mkdir(exist_ok=True)
                    Path(made, part, name).write_bytes(self._store.read(f"{TOKENIZER}/{part}/{name}"))
            settings = self._config.task
            if settings.name == "generation":  # both lie in the folder now
                settings = settings.model_copy(update={"target_tokenizer": None, "decoder": None})
            record_head(Path(made), settings, max_length=self._job["max_length"], labels=self._job["labels"])
            if hasattr(self._models, "finish"):
                longest = self._job["max_length"]
                self._models.finish(made, self._config.model, self._config.task, longest)
            task = self._config.task.name
            what = f"fine-tuned for {task}{getattr(plain, 'note', '')}, {trained:,} of {every:,} parameters trained,"
            base = self._job.get("base", {}).get("name")
            Path(made, "README.md").write_text(model_card(target, kind, state, what, task, base))
            write_folder(made, target)

    def _save(self, plain: Any, folder: str, target: str) -> str:
        adapter = self._config.adapter
        if adapter.name != "none":
            from raybert.train.adapters import is_merged, merged, save_adapter

            if not is_merged(adapter):
                base = self._job["base"]
                save_adapter(plain, folder, {**base, "beside": way_to(base["name"], target)})
                return str(plain.adapter_record["architecture"])
            plain = merged(plain)
        if getattr(self._config.task, "share", False):
            plain = self._models.untied(plain)
        plain.save_pretrained(folder)
        return getattr(plain, "loaded_by", type(plain).__name__)

    def plain(self, weights: Mapping[str, Any] | None) -> tuple[Any, PreTrainedModel]:
        """The model as the adapter made it, and what is trained and saved of it: the same but for peft's wrapper around
        matrices that it exchanged. On the CPU; new weights follow from the seed."""
        config, job = self._config, self._job
        torch.manual_seed(config.train.seed)
        outer: Any
        if hasattr(self._models, "make_plain"):  # more than an encoder with a head
            outer = self._models.make_plain(config.model, config.task, job["decoder"])
        else:
            outer = make_plain(
                config.model, self._models, job["labels"], config.task, vocabulary=job["vocabulary"]
            )
        if config.freeze.layers or config.freeze.embeddings:
            from raybert.train.freezing import freeze

            freeze(outer, config.freeze.layers, config.freeze.embeddings)
        if config.adapter.name != "none":
            from raybert.train.adapters import add_adapter

            steps, new = job["phases"][0]["steps"], job["new_tokens"]
            outer = add_adapter(outer, config.adapter, steps=steps, new_tokens=new)
        inner = outer.get_base_model() if config.adapter.name in ("lora", "adalora") else outer
        if weights is not None:
            load_weights(inner, dict(weights))
        return outer, inner

    def _writer(self) -> Writer:
        if self._made_writer is None:
            self._made_writer = Writer(self._store, self._job)
        return self._made_writer

    @staticmethod
    def _merge(scores: Any, device: Any) -> None:
        """Those of all ranks, on every rank."""
        for state in _of_others(scores.to_json(), device):
            scores.merge(state)

    def _validation(self) -> tuple[list[Any], int]:
        if self._held is None:
            examples = from_bytes(self._store.read(f"{self._examples}/validation.parquet"))
            self._held = in_order(
                examples,
                batch_tokens=self._job["batch_tokens"],
                parts=dist.get_world_size(),
                padded=self._padded,
                rank=dist.get_rank(),
                world=dist.get_world_size(),
            )
        return self._held


def _plain_of(model: Any) -> Any:
    return model.plain


def _in_order(value: Tensor, micro: ExampleMicro) -> np.ndarray:
    """What was given for sequences or tokens sorted by length, in the order of the examples; float32."""
    found = value.detach().float().cpu().numpy()
    lengths = micro.lengths
    order = np.argsort(lengths, kind="stable")
    if len(found) == len(lengths):
        moved_from = order
    else:
        assert len(found) == len(micro.ids), "outputs are of sequences or of tokens"
        starts = (np.cumsum(lengths) - lengths)[order]
        sizes = lengths[order]
        moved_from = np.arange(len(found)) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
    back = np.empty_like(found)
    back[moved_from] = found
    return back


def _summed(values: Tensor, device: Any) -> list[float]:
    found = values.to(device)
    dist.all_reduce(found)
    return found.tolist()


def _of_others(state: str, device: Any) -> list[str]:
    """The states of the other ranks, in their order: text, not pickles."""
    data = np.frombuffer(state.encode(), np.uint8)
    world, rank = dist.get_world_size(), dist.get_rank()
    size = torch.tensor([len(data)], dtype=torch.int64, device=device)
    sizes = [torch.zeros_like(size) for _ in range(world)]
    dist.all_gather(sizes, size)
    longest = max(int(s) for s in sizes)
    own = torch.zeros(longest, dtype=torch.uint8, device=device)
    own[: len(data)] = torch.from_numpy(data.copy()).to(device)
    every = [torch.zeros_like(own) for _ in range(world)]
    dist.all_gather(every, own)
    texts = [bytes(found[: int(s)].cpu().numpy()).decode() for found, s in zip(every, sizes, strict=True)]
    return texts[:rank] + texts[rank + 1 :]


def _line(figures: Mapping[str, float], metric: str) -> str:
    """The metric first, then some others."""
    others = (name for name in figures if name != metric and not name.startswith(("precision", "recall")))
    names = [metric, *others][:_SHOWN]
    return "  ".join(f"{name} {figures[name]:.4f}" for name in names if not math.isnan(figures[name]))
