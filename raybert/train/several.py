"""Fine-tuning for several tasks at once, as the loop runs it: one encoder, a head a task."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from raybert.config.finetune import FinetuneConfig
from raybert.tasks.several_model import SeveralModel, SharedModels
from raybert.train.checkpoint import CHECKPOINTS, Checkpoints, RunState
from raybert.train.finetuning import Finetuning
from raybert.train.gather import load_weights
from raybert.train.layer_decay import decayed_groups
from raybert.train.optimizers import parameter_groups
from raybert.train.several_job import member_configs, member_job
from raybert.train.several_objective import SeveralObjective
from raybert.train.several_stream import Member, SeveralStream
from raybert.train.trained import Evaluation

_LESS_IS_BETTER = ("loss", "mse")


class SeveralTasks:
    """See `raybert.train.trained.Trained`.

    A step is of one task and trains the encoder and that task's head; the other heads stay as they are to the bit, and so
    do their moments and counts of updates (see `raybert.train.engine.Engine`).

    Args:
        config: the settings, those of the tasks in `task.tasks`.
        job: what the driver resolved (see `raybert.train.several_job`).
    """

    def __init__(self, config: FinetuneConfig, job: dict[str, Any]) -> None:
        self._config = config
        self._members = {
            name: Finetuning(own, member_job(job, name, own), name)
            for name, own in member_configs(config).items()
        }
        weights = {name: config.task.tasks[name].weight for name in self._members}
        self.objective = SeveralObjective(
            {name: own.objective for name, own in self._members.items()}, weights
        )
        streams = {
            name: Member(
                own.streams[0], self.objective.empty_of(name), job["rows"][f"{name}/train"]["examples"]
            )
            for name, own in self._members.items()
        }
        stream = SeveralStream(streams, temperature=config.task.temperature, seed=config.train.seed)
        self.streams = [stream]
        evaluate = config.train.evaluate
        every = stream.steps_per_epoch if evaluate.every is None else evaluate.every
        self.evaluate_every = every if any(own.evaluate_every for own in self._members.values()) else 0
        metric = job["metric"]
        self.metric = (metric, metric.rpartition(".")[2] not in _LESS_IS_BETTER)
        self.patience = evaluate.patience
        self.export_best = evaluate.export == "best"

    def model(self, weights: Mapping[str, Any] | None) -> nn.Module:
        """The named model with a head for every task, what is frozen and what is added to it."""
        plain = self._shared(weights)
        return SeveralModel(plain, {name: own.wrapped(plain.of(name)) for name, own in self._members.items()})

    def groups(self, model: Any) -> list[dict[str, Any]]:
        """By depth where the rates of layers differ; those of a task's own weights have its name as `head`."""
        train = self._config.train
        if train.layer_decay == 1 and not self._config.freeze.gradual:
            groups = parameter_groups(model, train.weight_decay)
        else:
            groups = decayed_groups(model.plain, train.layer_decay, train.weight_decay)
        heads = {id(p): name for name, own in model.plain.heads().items() for p in own}
        return [part for group in groups for part in _by_head(group, heads)]

    def rate(self, model: Any) -> Any:
        """(group, step) -> the factor of its learning rate."""
        if not self._config.freeze.gradual:
            return None
        from raybert.train.freezing import unfreeze_schedule

        factor = unfreeze_schedule(model.plain, self.streams[0].steps_per_epoch)
        return lambda group, step: group["lr_scale"] * factor(group["depth"], step)

    def around(self, model: nn.Module) -> None:
        """Nothing."""

    def evaluate(self, engine: Any, phase: int) -> Evaluation | None:
        """The figures of every task that has validation rows, `NAME.accuracy` and so on.

        `mean` is the mean of the tasks' main figures, `loss` that of their losses.
        """
        found = {name: own.evaluate(engine, phase) for name, own in self._members.items()}
        evaluated = {name: one.figures for name, one in found.items() if one is not None}
        if not evaluated:
            return None
        mains = {f"{name}.{self._members[name].metric[0]}" for name in evaluated}
        own = {f"{name}.{key}": value for name, one in evaluated.items() for key, value in one.items()}
        figures = {
            "loss": math.fsum(one["loss"] for one in evaluated.values()) / len(evaluated),
            "mean": math.fsum(own[main] for main in mains) / len(mains),
            **own,
        }
        if self.metric[0] not in figures:
            raise ValueError(f"train.evaluate.metric={self.metric[0]}: the tasks have {', '.join(figures)}")
        shown = dict.fromkeys([self.metric[0], "mean", *sorted(mains)])
        line = "  ".join(f"{name} {figures[name]:.4f}" for name in shown)
        return Evaluation("validation", figures, line)

    def finished(self, step: int, device: Any) -> dict[str, float]:
        """None."""
        del step, device
        return {}

    def export(self, step: int) -> None:
        """Every task's model as a plain folder of its own, `model/NAME`."""
        folder = self._config.output.path.rstrip("/")
        checkpoints = Checkpoints(f"{folder}/{CHECKPOINTS}")
        state = RunState.of(checkpoints.record(step))
        plain = self._shared(checkpoints.weights(step))
        for name, own in self._members.items():
            weights = {key: p.detach().clone() for key, p in plain.of(name).named_parameters()}
            of_own = {key: value for key, value in state.evaluation.items() if key.startswith(f"{name}.")}
            own.write(weights, replace(state, evaluation=of_own), f"{folder}/model/{name}")

    def _shared(self, weights: Mapping[str, Any] | None) -> SharedModels:
        plain = SharedModels({name: own.plain(None)[1] for name, own in self._members.items()})
        if weights is not None:
            load_weights(plain, dict(weights))
        return plain


def _by_head(group: dict[str, Any], heads: Mapping[int, str]) -> list[dict[str, Any]]:
    """A parameter group as one of what is shared, and one for every head in it."""
    parts: dict[str, list[torch.Tensor]] = {}
    for parameter in group["params"]:
        parts.setdefault(heads.get(id(parameter), ""), []).append(parameter)
    return [{**group, "params": params, **({"head": name} if name else {})} for name, params in parts.items()]
