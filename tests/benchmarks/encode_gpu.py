"""Tokens per second of the Encoder on one GPU, token ids ready, against the matrix-product peak of the same GPU.

    python tests/benchmarks/encode_gpu.py [models=base,minilm] [lengths=512,50] [tokens=4000000] [rounds=5] [device=cuda]

Needs torch and transformers alone. Models are random weights in the shapes of BERT-base and all-MiniLM-L6 (and RoBERTa,
for correctness); `lengths` are the tokens of a text, drawn evenly from half to one and a half times that up to 512, or all
of 512. Sides, in alternating rounds: packed rows op by op ("torch"), packed rows compiled ("compiled"), and padded rows
through transformers' own attention ("transformers"), each in bfloat16. Before timing, packed vectors are compared with
padded float32 ones. FLOPs count linear layers and attention of real tokens. Prints a table and a JSON line.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel

from raybert.encoder import Encoder
from raybert.encoder.tokenizing import Tokenized

SHAPES = {
    "base": ("bert", 768, 12, 12, 3072),
    "minilm": ("bert", 384, 6, 12, 1536),
    "roberta": ("roberta", 768, 12, 12, 3072),
    "tiny": ("bert", 32, 2, 4, 64),
    "tiny-roberta": ("roberta", 32, 2, 4, 64),
}
SIDES = ("torch", "compiled", "transformers")
VOCABULARY = 30000


def main(argv: list[str]) -> int:
    """Measure every model at every length; 1 if a side's vectors are wrong."""
    settings = dict(word.split("=", 1) for word in argv)
    device, rounds = settings.get("device", "cuda"), int(settings.get("rounds", 5))
    if device == "cuda" and not torch.cuda.is_available():
        print("encode_gpu: torch sees no GPU here; nothing was measured (device=cpu checks correctness only)")
        return 0
    peak = matmul_peak(device)
    print(
        f"{torch.cuda.get_device_name() if device == 'cuda' else 'cpu'}, torch {torch.__version__}, "
        f"bfloat16 matrix products reach {peak / 1e12:.2f} TFLOP/s"
    )
    rows, wrong = [], False
    with tempfile.TemporaryDirectory() as folder:
        for name in settings.get("models", "base,minilm,roberta").split(","):
            path = write_model(Path(folder, name), name)
            for length in map(int, settings.get("lengths", "512,50").split(",")):
                found = measure(name, path, length, int(settings.get("tokens", 4_000_000)), rounds, device)
                for row in found:
                    row["of_peak"] = row["tokens_per_second"] * row["flops_per_token"] / peak
                    wrong |= not row["least_cosine"] >= 0.9995
                    show(row)
                rows += found
    print(json.dumps({"device": device, "peak_flops": peak, "rows": rows}))
    return int(wrong)


def measure(
    name: str, path: Path, length: int, tokens: int, rounds: int, device: str
) -> list[dict[str, Any]]:
    """One row a side: median tokens/s of alternating rounds, and the least cosine to float32 padded rows."""
    ids = random_texts(length, tokens)
    few = random_texts(length, min(tokens, 20_000))
    exact = Encoder.load(path, dtype="float32", device=device, kernels="transformers").encode_ids(few)
    encoders, cosines = {}, {}
    for side in SIDES:
        try:
            encoder = Encoder.load(path, dtype="bfloat16", device=device, kernels=side)
        except ValueError as error:
            print(f"{name} {side}: left out: {error}")
            continue
        encoders[side] = encoder
        cosines[side] = float((encoder.encode_ids(few) * exact).sum(1).min())
        encoder.encode_ids(ids)  # compiles, and fills the allocator
    speeds: dict[str, list[float]] = {side: [] for side in encoders}
    for _ in range(rounds):
        for side, encoder in encoders.items():
            started = time.perf_counter()
            encoder.encode_ids(ids)
            speeds[side].append(float(ids.lengths.sum()) / (time.perf_counter() - started))
    flops = flops_per_token(name, ids.lengths)
    return [
        {
            "model": name,
            "length": length,
            "side": side,
            "tokens_per_second": statistics.median(found),
            "flops_per_token": flops,
            "least_cosine": cosines[side],
        }
        for side, found in speeds.items()
    ]


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    print(
        f"{row['model']:12} {row['length']:>4} tokens  {row['side']:13} {row['tokens_per_second']:>12,.0f} tokens/s "
        f"{row['of_peak']:>6.1%} of peak  least cosine {row['least_cosine']:.6f}"
    )


def random_texts(length: int, tokens: int) -> Tokenized:
    """Token ids of random texts, special tokens included, the same on every call."""
    random = np.random.default_rng(length)
    count = max(tokens // length, 1)
    if length >= 512:
        lengths = np.full(count, 512)
    else:
        lengths = random.integers(max(length // 2, 3), length + length // 2 + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = random.integers(10, VOCABULARY, offsets[-1], np.int32)
    return Tokenized(values, offsets, np.zeros(count, bool))


def flops_per_token(name: str, lengths: np.ndarray) -> float:
    """Two a weight of the linear layers, and 4 t h a layer for the attention of a text of t tokens."""
    _, hidden, layers, _, inner = SHAPES[name]
    linear = 2 * (4 * hidden * hidden + 2 * hidden * inner)
    return layers * (linear + 4 * hidden * float((lengths.astype(float) ** 2).sum() / lengths.sum()))


def matmul_peak(device: str) -> float:
    """The best rate, in FLOP/s, of bfloat16 matrix products of the sizes that matter here."""
    best, size = 0.0, 8192 if device == "cuda" else 256
    for m, k, n in ((size, size, size), (4 * size, 768, 3072), (4 * size, 3072, 768)):
        a, b = (torch.randn(shape, device=device).bfloat16() for shape in ((m, k), (k, n)))
        for _ in range(5):
            synchronize(device)
            started = time.perf_counter()
            for _ in range(10):
                a @ b
            synchronize(device)
            best = max(best, 20 * m * k * n / (time.perf_counter() - started))
    return best


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def write_model(folder: Path, name: str) -> Path:
    """Random weights of a shape, with a tokenizer of numbers; vectors of different texts differ clearly."""
    kind, hidden, layers, heads, inner = SHAPES[name]
    folder.mkdir()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(specials)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    text = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(text))
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=514 if kind == "roberta" else 512,
        pad_token_id=1,
        initializer_range=0.05,  # the usual 0.02 makes all texts of a random model look alike
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    chain = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(chain)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
