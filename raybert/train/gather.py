"""Whole float32 tensors out of a DeepSpeed engine of any ZeRO stage, and back into one.

Every rank calls these, in step: ZeRO's pieces are collected and dealt out by all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from raybert.train.engine import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Tensors:
    """The state of a model and its optimizer, float32 on the CPU.

    Attributes:
        weights: by the parameter's name in the transformers model.
        moments: by `NAME.exp_avg` and `NAME.exp_avg_sq`.
        updates: how many updates the optimizer has made.
        extra: what else a run goes on from, by name: `Around.state` of the engine; `updates.HEAD`, the updates of a head
            that was idle in some steps.
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    updates: int
    extra: dict[str, Tensor] = field(default_factory=dict)


def gather(engine: Engine) -> Tensors | None:
    """The engine's whole state, on rank 0; None on the others. Before the first update moments are zero."""
    keep = dist.get_rank() == 0
    updates = _updates(engine)
    if updates:
        _find_moments(engine)
    weights, moments = {}, {}
    for name, parameter in engine.model.plain.named_parameters():
        whole = _whole(engine, parameter, None)
        if keep:
            weights[name] = whole.detach().float().cpu().clone()
        for moment in MOMENTS if updates and parameter.requires_grad else ():
            whole = _whole(engine, parameter, moment)
            if keep:
                moments[f"{name}.{moment}"] = whole.detach().float().cpu().clone()
    extra = engine.around.state() if engine.around is not None else {}
    for head, state in _states(engine):
        if head:
            extra[f"updates.{head}"] = torch.tensor(int(state["step"]))
    return Tensors(weights, moments, updates, extra) if keep else None


def load_weights(engine_model: Any, weights: dict[str, Tensor]) -> None:
    """Put weights into a plain model, before an engine is made of it. Raises ValueError if they are another model's."""
    parameters = dict(engine_model.named_parameters())
    if parameters.keys() != weights.keys():
        odd = sorted(parameters.keys() ^ weights.keys())
        raise ValueError(f"the checkpoint is of another model: {odd[0]} is in one of them only")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != weights[name].shape:
                raise ValueError(
                    f"the checkpoint is of another model: {name} is {tuple(weights[name].shape)} there, "
                    f"{tuple(parameter.shape)} here"
                )
            parameter.copy_(weights[name])


def restore(engine: Engine, tensors: Tensors) -> None:
    """Set the engine's state. Its model must hold `tensors.weights` already (`load_weights`).

    The float32 copies that ZeRO made of 16-bit weights are set as well, so nothing is lost to rounding.
    """
    _make_moments(engine)
    _find_moments(engine)
    for name, parameter in engine.model.plain.named_parameters():
        if not parameter.requires_grad:  # is what `load_weights` made it
            continue
        _set_whole(engine, parameter, tensors.weights[name], None)
        for moment in MOMENTS:
            known = tensors.moments.get(f"{name}.{moment}")
            _set_whole(
                engine, parameter, torch.zeros_like(tensors.weights[name]) if known is None else known, moment
            )
    _set_updates(engine, tensors.extra, tensors.updates)
    if engine.around is not None:
        engine.around.restore(tensors.extra)


def begin(engine: Engine) -> None:
    """Before the first step: heads that may be idle for long get their optimizer's state, for a checkpoint has all."""
    if any("head" in group for group in engine.applied_optimizer.param_groups):
        _make_moments(engine)
        _set_updates(engine, {}, 0)


def _make_moments(engine: Engine) -> None:
    """An update with a zero gradient and rate: optimizers make their state at the first one."""
    engine.deepspeed.train()
    objective = engine.objective
    nothing = objective.count([])
    backward = engine.deepspeed.backward
    micros = [(0, empty) for empty in objective.empties]
    objective.accumulate(
        engine.deepspeed, micros, nothing, seed=0, step=0, device=engine.device, backward=backward
    )
    engine.apply(0.0)


def _find_moments(engine: Engine) -> None:
    """Let ZeRO 1 and 2 look again where the moments lie.

    They look once, after the first update of the first parameter group; of the other groups they find nothing.
    """
    if engine.settings.zero in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _updates(engine: Engine) -> int:
    return max((int(state["step"]) for _, state in _states(engine)), default=0)


def _set_updates(engine: Engine, own: Mapping[str, Tensor], updates: int) -> None:
    for head, state in _states(engine):
        count = int(own.get(f"updates.{head}", updates))
        state["step"] = state["step"] * 0 + count  # a tensor with torch, a number with DeepSpeed


def _states(engine: Engine) -> list[tuple[str, dict[str, Any]]]:
    """The states that the optimizer has made, each with the `head` of its group; "" for others."""
    optimizer, zero = engine.applied_optimizer, engine.optimizer
    groups = [(group.get("head", ""), group["params"]) for group in optimizer.param_groups]
    if engine.settings.zero == 3:  # groups are empty but for the moment of their step
        numbers = zero.sub_group_to_group_id
        groups = [(groups[numbers[i]][0], [flat]) for i, flat in enumerate(zero.fp32_partitioned_groups_flat)]
    head_of = {id(p): head for head, params in groups for p in params}
    return [(head_of.get(id(p), ""), state) for p, state in optimizer.state.items() if "step" in state]


def _whole(engine: Engine, parameter: Tensor, moment: str | None) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if not parameter.requires_grad:
        return _whole_frozen(engine, parameter)
    if not engine.settings.zero:
        return parameter if moment is None else engine.applied_optimizer.state[parameter][moment]
    if moment is None:
        found = safe_get_full_fp32_param(parameter)
    else:
        found = safe_get_full_optimizer_state(parameter, moment)
    assert found is not None
    return found


def _whole_frozen(engine: Engine, parameter: Tensor) -> Tensor:
    """No optimizer has a copy of it."""
    if engine.settings.zero != 3:
        return parameter
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def _set_whole(engine: Engine, parameter: Tensor, value: Tensor, moment: str | None) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    value = value.to(engine.device)
    if not engine.settings.zero:
        with torch.no_grad():
            _whole(engine, parameter, moment).copy_(value)
    elif engine.settings.zero == 3:
        _set_piece(parameter, value, moment)
    elif moment is None:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, moment)


def _set_piece(parameter: Any, value: Tensor, moment: str | None) -> None:
    """This rank's piece under ZeRO 3. DeepSpeed's own way fails for a tensor that does not divide by the ranks."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    size = parameter.ds_tensor.numel()
    flat = torch.nn.functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
    piece = flat.narrow(0, size * dist.get_rank(), size)
    if moment is None:
        safe_set_local_fp32_param(parameter, piece)
    else:
        safe_set_local_optimizer_state(parameter, piece, moment)
