"""A DeepSpeed engine from our settings: one `train` call is one optimizer step over all ranks. No maths in here.

Torch's process group is there already (Ray Train's, or a test's). Weights of ZeRO 0 are float32 and computing is cast by
autocast; ZeRO 1 to 3 keep 16-bit weights and DeepSpeed's float32 copy of them.
"""

import logging
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from raybert.train.combinations import refuse_combinations
from raybert.train.optimizers import make_optimizer, parameter_groups
from raybert.train.pretraining_objective import PRETRAINING
from raybert.train.step import Counts, Figures, Micros, Objective

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


class Around(Protocol):
    """What looks at the gradients of a step, and changes weights after its update. Its state is the same on every rank."""

    def before_update(self) -> None: ...
    def after_update(self, step: int) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def restore(self, state: Mapping[str, Tensor]) -> None: ...


class Engine:
    """A model on this rank's device and its optimizer, cut up over the ranks as `settings` say.

    Args:
        model: has the transformers model as `plain` and the type to compute in as `autocast`.
        objective: what it is trained for.
        groups: parameter groups of torch's optimizers; `lr_scale` of a group multiplies its learning rate. Groups with a
            `head` are left alone in steps in which it is idle (see `Objective.idle`): their weights, moments and count of
            updates stay as they are, as if torch's optimizer found no gradient. DeepSpeed would give them one of zeros,
            with which momentum and weight decay move them. Default: `parameter_groups`.
        rate: (group, step) -> the factor of its learning rate. Default: its `lr_scale`, else 1.
        around: what is done before and after an update.

    Raises ValueError for combinations that DeepSpeed cannot do (see `refuse_combinations`).
    """

    def __init__(
        self,
        model: Any,
        settings: EngineSettings,
        *,
        objective: Objective = PRETRAINING,
        groups: list[dict[str, Any]] | None = None,
        rate: Callable[[dict[str, Any], int], float] | None = None,
        around: Around | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        refuse_combinations(
            optimizer=settings.optimizer,
            zero=settings.zero,
            offload=settings.offload,
            precision=settings.precision,
        )
        self.model, self.settings, self.device, self.objective = model, settings, device, objective
        self._norm = float("nan")
        self._idle: Collection[str] = ()
        self._hidden: list[tuple[dict[str, Any], list[Tensor]]] = []
        self._rate = rate or (lambda group, step: group.get("lr_scale", 1.0))
        self.around = around
        if not settings.zero:
            model.autocast = _AUTOCAST[settings.precision]
        if settings.recompute:
            with warnings.catch_warnings():  # its new name is missing in older releases
                warnings.simplefilter("ignore", FutureWarning)
                model.plain.gradient_checkpointing_enable({"use_reentrant": False})
        groups = parameter_groups(model, settings.weight_decay) if groups is None else groups
        optimizer = None if settings.offload else self._optimizer(groups)
        self.deepspeed = _initialize(model.to(device), groups, optimizer, _config(settings, device))
        self.optimizer: Any = self.deepspeed.optimizer
        self._alone = dist.get_world_size() == 1 and not settings.zero
        if self._alone:  # DeepSpeed would copy all gradients into one buffer and back
            self.deepspeed.enable_backward_allreduce = False

    @property
    def applied_optimizer(self) -> Optimizer:
        """The torch optimizer inside of DeepSpeed's."""
        return self.optimizer.optimizer if self.settings.zero else self.optimizer

    def train(self, micros: Micros, *, lr: float, seed: int, step: int) -> Figures:
        """One update over the micro batches of all ranks; every rank gives equally many (see `even_out`).

        Where the loss is not finite, the update is not made; the caller looks at `Figures.loss`.
        """
        counts = _over_ranks(self.objective.count(micros), self.device)
        self.deepspeed.train()
        totals = self.objective.accumulate(
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
        found = self._figures(totals, counts)
        if found.loss - found.loss != 0:  # nan or infinite, on every rank alike
            return found
        if self.around is not None:
            self.around.before_update()
        self._idle = self.objective.idle(counts)
        self.apply(lr, step)
        if self._idle and self.settings.zero == 3:
            # else the norm of a later step would count what heads had that are idle then
            self.optimizer.grad_partitions_flat_buffer.zero_()
        self._idle = ()
        if self.around is not None:
            self.around.after_update(step)
        return replace(found, grad_norm=self._norm)

    def apply(self, lr: float, step: int = 0) -> None:
        """Update the weights with the gradients that were accumulated."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * self._rate(group, step)
        if self._alone:
            self._fill_gradients()
        self.deepspeed.step()
        if self.settings.zero:
            norm = self.deepspeed.get_global_grad_norm()
            self._norm = float("nan") if norm is None else float(norm)

    def _fill_gradients(self) -> None:
        """Weights that had no part in the loss have a gradient of zeros, as DeepSpeed gives them on several ranks: they decay."""
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def evaluate(self, micros: Micros) -> Figures:
        """The figures of these batches of all ranks, without dropout and updates."""
        counts = _over_ranks(self.objective.count(micros), self.device)
        self.deepspeed.eval()
        totals = self.objective.evaluate(self.deepspeed, micros, self.device)
        dist.all_reduce(totals)
        return self._figures(totals, counts)

    def _figures(self, totals: Tensor, counts: Counts) -> Figures:
        return self.objective.figures(self.objective.sums(*totals.tolist()), counts)

    def close(self) -> None:
        """Let go of the memory."""
        self.deepspeed.destroy()

    def _optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        s = self.settings
        optimizer = make_optimizer(
            s.optimizer, self.model, betas=s.betas, eps=s.eps, fused=not s.zero, groups=groups
        )
        if not s.zero:
            optimizer.register_step_pre_hook(self._clip_whole)
        if any("head" in group for group in groups):
            optimizer.register_step_pre_hook(self._hide_idle)
            optimizer.register_step_post_hook(self._show_idle)
        return optimizer

    def _hide_idle(self, optimizer: Optimizer, *_: Any) -> None:
        """ZeRO steps one group at a time, or all: what is idle is empty meanwhile."""
        idle = [group for group in optimizer.param_groups if group.get("head") in self._idle]
        self._hidden = [(group, group["params"]) for group in idle]
        for group in idle:
            group["params"] = []

    def _show_idle(self, *_: Any) -> None:
        for group, params in self._hidden:
            group["params"] = params

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


def _initialize(
    model: nn.Module, groups: list[dict[str, Any]], optimizer: Optimizer | None, config: dict[str, Any]
) -> Any:
    """`deepspeed.initialize` without a compiler and without its log."""
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # it would be compiled when the process group starts, also in CPU-only runs, which do not need it
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=groups if optimizer is None else None,
            optimizer=optimizer,
            config=config,
        )
    return engine


def _over_ranks(own: Counts, device: str | torch.device) -> Counts:
    """The counts of the global batch."""
    fields: Sequence[int] = (*own.targets, own.tokens, own.sequences)
    total: Tensor = torch.tensor(fields, dtype=torch.int64, device=device)
    dist.all_reduce(total)
    *targets, tokens, sequences = (int(value) for value in total.tolist())
    return Counts(tuple(targets), tokens, sequences)
