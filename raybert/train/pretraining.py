"""Pretraining, as the loop runs it."""

import math
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import nn

from raybert.config.training import PretrainConfig
from raybert.train.baselines import baselines
from raybert.train.data import held_out, make_stream
from raybert.train.export import export
from raybert.train.gather import load_weights
from raybert.train.job import tokens_path
from raybert.train.pretraining_model import PretrainingModel
from raybert.train.pretraining_objective import PRETRAINING
from raybert.train.shapes import run_model
from raybert.train.step import Figures, Micros
from raybert.train.trained import Evaluation


class Pretraining:
    """See `raybert.train.trained.Trained`.

    Args:
        config: the settings.
        job: what the driver resolved (see `raybert.train.job.make_job`); gets the model's configuration.
    """

    objective = PRETRAINING
    metric = ("loss", False)
    patience = None
    export_best = False

    def __init__(self, config: PretrainConfig, job: dict[str, Any]) -> None:
        self._config, self._job = config, job
        self.streams = [make_stream(config, phase, "train", job["batch_tokens"]) for phase in job["phases"]]
        self.evaluate_every = config.train.evaluate.every
        self._held: dict[int, Micros] = {}
        self._guessing: dict[int, dict[str, float]] = {}

    def model(self, weights: Mapping[str, Any] | None) -> nn.Module:
        """A new model of the settings' shape, the named one, or that of a checkpoint."""
        config, job = self._config, self._job
        plain = run_model(config.model, job["tokens"], pairs=job["pairs"], seed=config.train.seed)
        job["model_config"] = plain.config.to_dict()
        if weights is not None:
            load_weights(plain, dict(weights))
        return PretrainingModel(plain, padded=config.train.padded)

    def groups(self, model: nn.Module) -> None:
        """The usual ones."""

    def rate(self, model: nn.Module) -> None:
        """The same for all."""

    def around(self, model: nn.Module) -> None:
        """Nothing."""

    def evaluate(self, engine: Any, phase: int) -> Evaluation | None:
        """Figures on the held-out shards of the phase: the same batches and masks each time."""
        held = self._job["phases"][phase]
        if not held["held"]:
            return None
        if phase not in self._held:
            tokens, rank, world = self._job["batch_tokens"], dist.get_rank(), dist.get_world_size()
            self._held[phase] = held_out(self._config, held, tokens, rank, world)
            vocabulary = engine.model.plain.config.vocab_size
            self._guessing[phase] = baselines(self._held[phase], vocabulary, engine.device)
        found, guessing = engine.evaluate(self._held[phase]), self._guessing[phase]
        figures = {k: v for k, v in found.as_dict().items() if k not in ("tokens", "predictions")}
        return Evaluation("held_out", figures, _line(found, guessing), guessing)

    def finished(self, step: int, device: Any) -> dict[str, float]:
        """None."""
        del step, device
        return {}

    def export(self, step: int) -> None:
        """The model as a plain folder."""
        folder = self._config.output.path.rstrip("/")
        tokens = tokens_path(self._config, len(self.streams) - 1)
        export(folder, f"{folder}/model", step=step, tokens=tokens)


def _line(found: Figures, guessing: Mapping[str, float]) -> str:
    """`loss 4.1 (guessing 5.8)  perplexity 60.3  accuracy 34.0% (7.4%)` for the terminal."""
    values = found.values
    text = f"loss {values['mlm_loss']:.4f} (guessing {guessing['unigram_loss']:.4f})"
    text += f"  perplexity {values['perplexity']:.1f}"
    text += f"  accuracy {values['mlm_accuracy']:.1%} ({guessing['unigram_accuracy']:.1%})"
    pairs = values["pair_accuracy"]
    return text if math.isnan(pairs) else f"{text}  pairs {pairs:.1%} ({guessing['pair_majority']:.1%})"
