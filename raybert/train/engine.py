"""A DeepSpeed engine from our settings: one `train` call is one optimizer step over all ranks. No maths in here.

Torch's process group is there already (Ray Train's, or a test's). Weights of ZeRO 0 are float32 and computing is cast by
autocast; ZeRO 1 to 3 keep 16-bit weights and DeepSpeed's float32 copy of them.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from raybert.train.combinations import refuse_combinations
from raybert.train.optimizers import make_optimizer
from raybert.train.pretraining_model import PretrainingModel, Sums
from raybert.train.step import Counts, Figures, Micros, accumulate, count, figures

_AUTOCAST = {"bfloat16": torch.bfloat16, "float32": None}
_PRECISION: dict[str, dict[str, Any]] = {
    "float32": {},
    # sums of many micro batches in 16 bits would lose the small ones
    "bfloat16": {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
    "float16": {"fp16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
}


@dataclass(frozen=True)
class EngineSettings:
    """What the engine depends on.

    Attributes:
        zero: DeepSpeed's ZeRO stage: 0 nothing is cut up, 1 the optimizer's state, 2 gradients too, 3 weights too
            (Rajbhandari et al. 2020, arXiv 1910.02054).
        offload: the optimizer's state lies in the host's memory and is updated there.
        precision: float32, bfloat16 or float16, of computing.
        clip: bound of the norm of the whole gradient; None for none.
        recompute: activations are computed again in the backward pass instead of being kept.
    """

    zero: int = 1
    offload: bool = False
    precision: str = "float32"
    clip: float | None = 1.0
    recompute: bool = False
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6


class Engine:
    """A model on this rank's device and its optimizer, cut up over the ranks as `settings` say.

    Raises ValueError for combinations that DeepSpeed cannot do (see `refuse_combinations`).
    """

    def __init__(
        self, model: PretrainingModel, settings: EngineSettings, *, device: str | torch.device = "cpu"
    ) -> None:
        refuse_combinations(
            optimizer=settings.optimizer,
            zero=settings.zero,
            offload=settings.offload,
            precision=settings.precision,
        )
        self.model, self.settings, self.device = model, settings, device
        self._norm = float("nan")
        if not settings.zero:
            model.autocast = _AUTOCAST[settings.precision]
        if settings.recompute:
            with warnings.catch_warnings():  # its new name is missing in older releases
                warnings.simplefilter("ignore", FutureWarning)
                model.plain.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = None if settings.offload else self._optimizer()
        self.deepspeed = _initialize(model.to(device), optimizer, _config(settings, device))
        self.optimizer: Any = self.deepspeed.optimizer

    @property
    def applied_optimizer(self) -> Optimizer:
        """The torch optimizer inside of DeepSpeed's."""
        return self.optimizer.optimizer if self.settings.zero else self.optimizer

    def train(self, micros: Micros, *, lr: float, seed: int, step: int) -> Figures:
        """One update over the micro batches of all ranks; every rank gives equally many (see `even_out`).

        Where the loss is not finite, the update is not made; the caller looks at `Figures.loss`.
        """
        counts = _over_ranks(count(micros), self.device)
        self.deepspeed.train()
        totals = accumulate(
            self.deepspeed,
            micros,
            counts,
            seed=seed,
            step=step,
            device=self.device,
            backward=self.deepspeed.backward,
            scale=dist.get_world_size(),  # DeepSpeed divides the sum over the ranks by their number
        )
        dist.all_reduce(totals)
        found = figures(totals.tolist(), counts)
        if found.loss - found.loss != 0:  # nan or infinite, on every rank alike
            return found
        self.apply(lr)
        return figures(totals.tolist(), counts, self._norm)

    def apply(self, lr: float) -> None:
        """Update the weights with the gradients that were accumulated."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.deepspeed.step()
        if self.settings.zero:
            norm = self.deepspeed.get_global_grad_norm()
            self._norm = float("nan") if norm is None else float(norm)

    @torch.no_grad()
    def evaluate(self, micros: Micros) -> Figures:
        """The figures of these batches of all ranks, without dropout and updates."""
        from raybert.train.packed import empty_batch, pack

        counts = _over_ranks(count(micros), self.device)
        totals = torch.zeros(len(Sums._fields), dtype=torch.float64, device=self.device)
        self.deepspeed.eval()
        for entry in micros:
            batch = empty_batch(self.device) if entry is None else pack(entry[1], self.device)
            totals += torch.stack([value.double() for value in Sums(*self.deepspeed(batch))])
        dist.all_reduce(totals)
        return figures(totals.tolist(), counts)

    def close(self) -> None:
        """Let go of the memory."""
        self.deepspeed.destroy()

    def _optimizer(self) -> Optimizer:
        s = self.settings
        optimizer = make_optimizer(
            s.optimizer,
            self.model,
            weight_decay=s.weight_decay,
            betas=s.betas,
            eps=s.eps,
            fused=not s.zero,
        )
        if not s.zero:
            optimizer.register_step_pre_hook(self._clip_whole)
        return optimizer

    def _clip_whole(self, *_: Any) -> None:
        """Without ZeRO the gradients are whole, and DeepSpeed does not tell their norm."""
        bound = self.settings.clip or float("inf")
        self._norm = float(clip_grad_norm_(self.model.parameters(), bound))


def _config(settings: EngineSettings, device: str | torch.device) -> dict[str, Any]:
    """DeepSpeed's own settings."""
    zero: dict[str, Any] = {"stage": settings.zero}
    if torch.device(device).type == "cpu":
        zero["overlap_comm"] = False
    config: dict[str, Any] = {
        # batches are ours: a step has as many micro batches as it has, and ends where we say
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "zero_optimization": zero,
        "steps_per_print": None,
        # without ZeRO we clip; unless told DeepSpeed does, at 1
        "gradient_clipping": settings.clip or 0.0 if settings.zero else 0.0,
    }
    if settings.zero:
        config |= _PRECISION[settings.precision]
    if settings.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        config["optimizer"] = {
            "type": "AdamW",
            "params": {"betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay},
        }
    return config


def _initialize(model: PretrainingModel, optimizer: Optimizer | None, config: dict[str, Any]) -> Any:
    """`deepspeed.initialize` without a compiler and without its log."""
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    from raybert.train.optimizers import parameter_groups

    logger.setLevel(logging.ERROR)
    # it would be compiled when the process group starts, also in CPU-only runs, which do not need it
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    groups = (
        parameter_groups(model, config["optimizer"]["params"]["weight_decay"]) if optimizer is None else None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=groups, optimizer=optimizer, config=config
        )
    return engine


def _over_ranks(own: Counts, device: str | torch.device) -> Counts:
    """The counts of the global batch."""
    fields: Sequence[int] = (own.predictions, own.pairs, own.tokens, own.sequences)
    total: Tensor = torch.tensor(fields, dtype=torch.int64, device=device)
    dist.all_reduce(total)
    return Counts(*(int(value) for value in total.tolist()))
