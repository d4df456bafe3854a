"""AdaLoRA: its ranks fall while it trains, under any engine that leaves parameters whole, and its regulariser."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_PATTERN = "rank_pattern"


class RankAllocation:
    """Lets AdaLoRA's ranks fall, under any engine that leaves parameters whole (ZeRO 0 to 2).

    A step is: backward passes; `before_update()`; the optimizer's update; `after_update(step)`. peft scores weights by the
    gradients of the step, and zeroes what it takes away after the update, for else the optimizer would bring it back.
    DeepSpeed drops gradients in the update, and has those of one rank or none before it: they are added up here, as
    backward passes make them.

    Args:
        model: of `add_adapter`. Its backward passes are counted from here on.

    Raises:
        ValueError: ZeRO 3 has cut up the weights.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._new = {name: p for name, p in model.named_parameters() if "lora_" in name and p.requires_grad}
        if any(hasattr(p, "ds_id") for p in self._new.values()):
            raise ValueError(
                "adapter.name=adalora needs whole matrices, train.zero=3 cuts them up; set train.zero=2"
            )
        self._allocator = model.base_model.rankallocator
        self._peft_config = model.peft_config[model.base_model.trainable_adapter_name]
        self._own: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        for name, parameter in self._new.items():
            parameter.register_hook(partial(self._add, name))

    def before_update(self) -> None:
        """Add up the gradients of all ranks. Every rank must call this."""
        for name, parameter in self._new.items():
            found = self._own.pop(name, torch.zeros_like(parameter, dtype=torch.float32))
            if dist.is_initialized():
                dist.all_reduce(found)
            # of an update that float16 skips: DeepSpeed tries again with a smaller scale
            self._gradients[name] = found if bool(found.isfinite().all()) else torch.zeros_like(found)

    def after_update(self, step: int) -> None:
        """Score the triplets and zero those beyond the budget b(step). Steps count from 0."""
        for name, parameter in self._new.items():
            parameter.grad = self._gradients.pop(name).to(parameter.dtype)
        self._model.base_model.update_and_allocate(step + 1)
        for name, parameter in self._new.items():
            parameter.grad = None
            if ".lora_E." in name:
                _keep(parameter)

    def ranks(self) -> dict[str, int]:
        """Triplets that are not zero, by the name of the matrix."""
        return {
            name.partition(".lora_E.")[0]: int(p.detach().count_nonzero())
            for name, p in self._new.items()
            if ".lora_E." in name
        }

    def state(self) -> dict[str, Tensor]:
        """Sensitivity, its mean, its uncertainty (Zhang et al. 2023, equations 9 to 11), and the ranks that are kept."""
        found = {
            f"{kind}/{name}": value.detach().float().cpu().clone()
            for kind in _SCORES
            for name, value in getattr(self._allocator, kind).items()
        }
        pattern = self._peft_config.rank_pattern or {}
        return found | {f"{_PATTERN}/{name}": torch.tensor(kept) for name, kept in pattern.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        like = dict(self._new)
        for kind in _SCORES:
            scores = {
                name: state[f"{kind}/{name}"].to(like[name]) for name in like if f"{kind}/{name}" in state
            }
            setattr(self._allocator, kind, scores)
        pattern = {
            key.partition("/")[2]: value.tolist()
            for key, value in state.items()
            if key.startswith(f"{_PATTERN}/")
        }
        self._peft_config.rank_pattern = pattern or None
        self._own.clear()  # gradients of the pass that made the optimizer's state

    def _add(self, name: str, gradient: Tensor) -> None:
        known = self._own.get(name)
        found = gradient.detach().float()
        self._own[name] = found.clone() if known is None else known + found


def orthogonality(model: nn.Module) -> Tensor:
    """AdaLoRA's regulariser: 0.5 times the mean over its matrices P = A and P = B' of |P P' - I| (Frobenius). [].

    Zhang et al. 2023, arXiv 2303.10512, equation 4, as peft has it: a mean, no square, the factor 0.5 in it. It is added
    to the loss of a step once, not of every micro batch.
    """
    norms = []
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            rows = parameter if ".lora_A." in name else parameter.T
            norms.append(torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), device=rows.device)))
    return 0.5 * torch.stack(norms).mean()


def _keep(parameter: Any) -> None:
    """Tell ZeRO's own copy of a weight what it is now."""
    if getattr(parameter, "_hp_mapping", None) is not None or hasattr(parameter, "_dp_group"):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, parameter.detach().float())
