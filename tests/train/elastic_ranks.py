"""Elastic weights in processes of one gloo group; a job of `tests.train.ranks`."""

from pathlib import Path
from typing import Any

STRENGTH, SEED, ROWS = 0.7, 3, 7


def made(seed: int = 0) -> Any:
    """A classifier with the weights of `seed`."""
    import torch

    from raybert.config.finetune import ClassificationSettings
    from raybert.tasks import classify_model
    from tests.tasks.model_fakes import plain

    found = plain(classify_model, ["a", "b", "c"], ClassificationSettings())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return classify_model.Model(found, ClassificationSettings())


def elastic(folder: Path, rank: int) -> dict[str, Any]:
    """Weights after two updates of both ranks in stages 0 and 2, by name of the stage; what the run's folder kept lies
    there."""
    import torch.distributed as dist
    from safetensors.torch import save_file

    from raybert.config.finetune import ClassificationSettings
    from raybert.corpus.store import Store
    from raybert.tasks.classify_model import Model
    from raybert.train.elastic import elastic_weights
    from raybert.train.engine import Engine, EngineSettings
    from raybert.train.example_stream import nothing
    from raybert.train.gather import gather
    from raybert.train.task_objective import TaskObjective
    from tests.train.task_fakes import examples_of

    def never() -> Any:
        raise AssertionError("the folder has it")

    out: dict[str, Any] = {}
    for zero in (0, 2):
        store = Store(str(folder / f"run-{zero}"))
        held = elastic_weights(made, lambda: examples_of(9, ROWS), store, strength=STRENGTH, seed=SEED)
        again = elastic_weights(never, never, store, strength=STRENGTH, seed=SEED)
        model = made(1)  # not where it began: the penalty has a gradient
        out[f"penalties-{zero}"] = [float(x.penalty(model).detach()) for x in (held, again)]
        objective = TaskObjective(
            Model.sums_type(ClassificationSettings()), Model.targets, nothing(examples_of(0))
        )
        objective.penalty = lambda model=model, held=held: held.penalty(model)
        engine = Engine(model, EngineSettings(zero=zero), objective=objective)
        for step in range(2):
            engine.train(micros(step)[rank::2], lr=1e-2, seed=0, step=step)
        tensors = gather(engine)
        if tensors is not None:
            save_file(tensors.weights, folder / f"after-{zero}.safetensors")
        engine.close()
        dist.barrier()
    return out


def micros(step: int) -> list[tuple[int, Any]]:
    """Two micro batches of a step."""
    from tests.train.task_fakes import micro_of

    return [(number, micro_of(10 * step + number, 3 + number)) for number in range(2)]
