"""Dropout with cheap random numbers: torch's own draws one double at a time on a CPU, a tenth of a training step."""

import torch
from torch import Tensor, nn

_LEVELS = 2**16  # a probability is rounded to this many steps: four numbers of one draw


def keep_mask(shape: tuple[int, ...], p: float, device: str | torch.device = "cpu") -> Tensor:
    """bool [*shape], each False with probability p (to 1/65536), from torch's global generator."""
    if torch.device(device).type != "cpu":
        return torch.rand(shape, device=device) >= p
    count = torch.Size(shape).numel()
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return (drawn.view(torch.int16)[:count] >= round(p * _LEVELS) - _LEVELS // 2).view(shape)


class Dropout(nn.Dropout):
    """`nn.Dropout` (Srivastava et al. 2014) with `keep_mask` on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """The input with elements zeroed and the others scaled by 1 / (1 - p), in training."""
        if not self.training or self.p == 0 or input.is_cuda:
            return super().forward(input)
        return input * keep_mask(tuple(input.shape), self.p).to(input.dtype).div_(1 - self.p)


def quicken_dropout(model: nn.Module) -> None:
    """Let every `nn.Dropout` in the model be a `Dropout`. It has no weights: nothing that is saved changes."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
