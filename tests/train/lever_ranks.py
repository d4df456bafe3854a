"""What the tests of the levers need in two processes of one gloo group: python -m tests.train.lever_ranks RANK FOLDER JOB."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
WORLD, LR = 2, 0.1


def run(folder: Path, job: str) -> Any:
    """Do `job` in two processes; what rank 0 found."""
    import torch

    # PATH has no compiler: DeepSpeed must do without
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": "/nowhere", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.lever_ranks", str(rank), str(folder), job],
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    failed = [text for process, text in zip(started, said, strict=True) if process.returncode]
    assert not failed, "\n".join(text[-3000:] for text in failed)
    return torch.load(folder / f"{job}.pt", weights_only=True)


def engine_of(model: Any, zero: int, optimizer: Any) -> Any:
    """A DeepSpeed engine of float32 weights with a torch optimizer."""
    import logging
    import warnings

    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # without the threshold ZeRO 3 would leave all of so small a model whole
        "zero_optimization": {"stage": zero, "overlap_comm": False, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "gradient_clipping": 0.0,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def weights(plain: Any, zero: int) -> dict[str, Any]:
    """Whole float32 weights, on every rank."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = safe_get_full_fp32_param if zero else lambda p: p
    return {name: whole(p).detach().clone() for name, p in plain.named_parameters()}


def adversarial_steps(
    model: Any, settings: Any, optimizer: Any, ranks: list[int], engine: Any = None
) -> dict[str, Any]:
    """Two updates over the micro batches of these ranks; in one process all of them. Weights, if there is no engine."""
    import torch

    from raybert.train.adversarial import step
    from tests.train.lever_fakes import batch

    lengths = [(3, 7, 12), (5, 6)]
    count = sum(map(len, lengths))
    for update in range(2):
        for rank in ranks:
            data = batch(10 * update + rank, lengths[rank])
            torch.manual_seed(10 * update + rank)

            def backward(loss):
                return loss.backward() if engine is None else engine.backward(loss * WORLD)

            step(engine or model, data, lambda sums: sums[0] / count, backward, settings, targets=count)
        if engine is None:
            optimizer.step()
            optimizer.zero_grad()
        else:
            engine.step()
    return {name: p.detach() for name, p in model.plain.named_parameters()}


def adversarial(rank: int) -> dict[str, Any]:
    """Weights after two steps of every method in stages 0, 2 and 3."""
    import torch

    from tests.train.lever_fakes import Classifier, plain_model
    from tests.train.test_adversarial import SETTINGS

    out = {}
    for name, given in SETTINGS.items():
        for zero in (0, 2, 3):
            model = Classifier(plain_model())
            engine = engine_of(model, zero, torch.optim.SGD(model.parameters(), lr=LR))
            adversarial_steps(model, SimpleNamespace(name=name, **given), None, [rank], engine)
            out[f"{name}-{zero}"] = weights(model.plain, zero)
            engine.destroy()
    return out


def adalora_steps(zero: int, ranks: list[int], distributed: bool = False) -> dict[str, Any]:
    """The ranks and the weights of AdaLoRA after 12 updates over the micro batches of these ranks."""
    import torch

    from raybert.train.adalora import RankAllocation, orthogonality
    from raybert.train.adapters import add_adapter
    from tests.train.lever_fakes import Classifier, batch, plain_model
    from tests.train.test_adapters import settings

    torch.manual_seed(0)
    model = add_adapter(plain_model(), settings("adalora"), steps=12)
    classifier = Classifier(model.get_base_model())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    engine = engine_of(classifier, zero, optimizer) if distributed else None
    allocation = RankAllocation(model)
    lengths = [(3, 7, 12), (5, 6)]
    for step in range(12):
        for rank in ranks:
            loss = (engine or classifier)(batch(10 * step + rank, lengths[rank]))[0] / 5
            loss.backward() if engine is None else engine.backward(loss * WORLD)
        for _ in ranks:  # a mean over the ranks, so the penalty counts once
            # so little that scores follow from the batches
            penalty = 1e-3 * orthogonality(model) / len(ranks)
            penalty.backward() if engine is None else engine.backward(penalty)
        allocation.before_update()
        if engine is None:
            optimizer.step()
            optimizer.zero_grad()
        else:
            engine.step()
        allocation.after_update(step)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if engine is not None and zero:
        from deepspeed.utils import safe_get_full_fp32_param

        trained = {name: safe_get_full_fp32_param(p) for name, p in trained.items()}
    found = {name: p.detach().clone() for name, p in trained.items()}
    if engine is not None:
        engine.destroy()
    return {"ranks": allocation.ranks(), "weights": found}


def adalora(rank: int) -> dict[str, Any]:
    """`adalora_steps` of stages 0 to 2; what is said of stage 3."""
    out: dict[str, Any] = {}
    for zero in (0, 1, 2):
        found = adalora_steps(zero, [rank], True)
        out |= {f"ranks-{zero}": found["ranks"], f"weights-{zero}": found["weights"]}
    try:
        adalora_steps(3, [rank], True)
    except ValueError as error:
        out["refused"] = str(error)
    return out


def contrastive_model(dropout: float = 0.3) -> Any:
    """A tiny encoder."""
    from raybert.train.packed import PACKED
    from tests.train.lever_fakes import plain_model

    plain = plain_model(dropout=dropout).bert
    plain.pooler = None
    plain.set_attn_implementation(PACKED)
    return plain


def contrastive_chunks() -> list[tuple[Any, Any]]:
    """Five packed batches and what their sequences are: queries, documents and negatives in different chunks."""
    import torch

    from raybert.tasks.contrastive_model import Members
    from tests.train.lever_fakes import batch

    found, number = [], 0
    # (example, role), a query in another chunk than its document
    content = [
        [(0, 0), (1, 0), (2, 0)],
        [(0, 1), (3, 0)],
        [(1, 1), (2, 1), (1, 2)],
        [(3, 1)],
        [(4, 0), (4, 1), (0, 2), (0, 3)],
    ]
    for i, pairs in enumerate(content):
        example, role = (torch.tensor(x) for x in zip(*pairs, strict=True))
        key = torch.arange(number, number + len(pairs))
        number += len(pairs)
        found.append((batch(i, tuple(range(4, 4 + len(pairs)))), Members(example, role, key)))
    return found


def embed_with(model: Any) -> Any:
    """(batch, members) -> [n, width], the mean of the last hidden states of every sequence."""
    import torch

    def embed(chunk: Any) -> Any:
        data, _ = chunk
        hidden = model(input_ids=data.ids, position_ids=data.places, packed=data.rows)[0][0]
        return torch.stack([part.mean(0) for part in hidden.split(data.rows.lengths.tolist())])

    return embed


def share_of(chunks: list[tuple[Any, Any]]) -> Any:
    """vectors of these chunks -> this rank's share of the mean loss."""
    import torch

    from raybert.tasks.contrastive_model import Members, Ranking, ranking_sums

    members = Members.of(torch.cat([found.stacked() for _, found in chunks]))
    settings = Ranking(symmetric=True, dimensions=(32, 16, 8))
    return lambda vectors: ranking_sums(vectors, members, settings).loss_sum / 5


def contrastive(rank: int) -> dict[str, Any]:
    """The loss and the gradients of GradCache over two ranks: 3 chunks here, 2 and an empty one there."""
    import torch
    import torch.distributed as dist

    from raybert.tasks.contrastive_model import Members
    from raybert.train.grad_cache import grad_cache
    from raybert.train.step import seed_dropout
    from tests.train.lever_fakes import batch

    nothing = torch.zeros(0, dtype=torch.int64)
    own = list(enumerate(contrastive_chunks()))[rank::WORLD]
    if rank:
        own.append((0, (batch(0, (1,)), Members(nothing, nothing, nothing))))
    numbers, chunks = zip(*own, strict=True)

    def embed_of(model: Any) -> Any:
        inside = embed_with(model)
        return lambda chunk: inside(chunk)[: len(chunk[1].role)]  # the empty chunk has a token, but no vector

    def descend(model: Any, backward: Any) -> Any:
        loss = grad_cache(
            embed_of(model),
            chunks,
            share_of(list(chunks)),
            backward=backward,
            seed=lambda i: seed_dropout(7, 0, numbers[i]),
        )
        dist.all_reduce(loss)
        return loss

    model = contrastive_model()
    out = {"loss-none": descend(model, torch.Tensor.backward)}
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    out["gradients-none"] = {name: p.grad.clone() for name, p in model.named_parameters()}
    start = {name: p.detach().clone() for name, p in contrastive_model().named_parameters()}
    for zero in (0, 2, 3):
        model = contrastive_model()
        engine = engine_of(model, zero, torch.optim.SGD(model.parameters(), lr=1.0))

        def backward(loss: Any, engine: Any = engine) -> None:
            engine.backward(loss * WORLD)

        out[f"loss-{zero}"] = descend(engine, backward)
        engine.step()
        after = weights(model, zero)
        out[f"gradients-{zero}"] = {name: start[name] - value for name, value in after.items()}
        engine.destroy()
    return out


def main(rank: int, folder: Path, job: str) -> None:
    """One process of the group."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=WORLD)
    found = {"adversarial": adversarial, "adalora": adalora, "contrastive": contrastive}[job](rank)
    if rank == 0:
        torch.save(found, folder / f"{job}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
