"""AdaLoRA's scores and ranks in a checkpoint: a run that goes on lets the same ranks fall."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raybert.train.adapters import RankAllocation

_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_PATTERN = "rank_pattern"


class ResumableRanks(RankAllocation):
    """`RankAllocation` with a state: tensors by name, the same on every rank."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._allocator = model.base_model.rankallocator
        self._peft_config = model.peft_config[model.base_model.trainable_adapter_name]

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
