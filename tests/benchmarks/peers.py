"""The sides that encode.py compares, each loaded as its own documentation says and run in a process of its own.

    python tests/benchmarks/peers.py SIDE FOLDER MAX_LENGTH THREADS TEXTS.json

loads a side, warms it up and then obeys one word a line on stdin: `round` encodes all texts and answers the seconds,
`save FILE.npy ROW,ROW,...` writes those rows of the last round's vectors. Answers are JSON lines on stdout.

Needs no more than the side's own packages, because some sides run in an older environment (peers.txt).
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import roof

Encode = Callable[[Sequence[str]], np.ndarray]
BUDGETS = (256, 512, 1024, 2048, 4096)  # tokens in a batch, padding included


@dataclass(frozen=True)
class Task:
    """What a side is given: a sentence-transformers folder, a cut in tokens, cores, and texts like those to come."""

    folder: Path
    max_length: int
    threads: int
    sample: list[str]


def raybert(task: Task) -> tuple[Encode, str]:
    """As README.md says, with every default; what it chose is in `kernels`, if it says so."""
    from raybert import Encoder

    encoder = Encoder.load(task.folder, max_length=task.max_length, threads=task.threads)
    chosen = f"{encoder.dtype}, {encoder.batch_tokens} tokens, {getattr(encoder, 'kernels', 'transformers')}"
    return encoder.encode, chosen


def sentence_transformers(task: Task, **options: object) -> tuple[Encode, str]:
    """As its documentation begins: batches of 32, sorted by length, float32."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(task.threads)
    model = SentenceTransformer(str(task.folder), device="cpu", **options)
    model.max_seq_length = task.max_length
    return model.encode, "batches of 32"


def sentence_transformers_bf16(task: Task) -> tuple[Encode, str]:
    """Its documented faster data type; numpy has no bfloat16, so the vectors come as float32."""
    return sentence_transformers(task, model_kwargs={"torch_dtype": "bfloat16"})


def sentence_transformers_openvino(task: Task) -> tuple[Encode, str]:
    """Its documented backend for CPUs without loss by int8. OpenVINO itself takes bfloat16 where the CPU has it."""
    encode, chosen = sentence_transformers(task, backend="openvino")
    model = encode.__self__[0].auto_model
    model.compile()
    compiled = getattr(model, "compiled_model", None) or model.request
    return encode, f"{chosen}, {compiled.get_property('INFERENCE_PRECISION_HINT').get_type_name()}"


def openvino(task: Task) -> tuple[Encode, str]:
    """OpenVINO in bfloat16, where the CPU has it, as fast as we can make it: pooling and normalising inside the
    graph, sorted batches bounded in tokens, an asynchronous queue with a request in reserve for every stream; the
    number of streams and the size of batches are tried out on the sample."""
    import openvino as ov

    model, example = _pooled_model(task)
    core, graph = ov.Core(), ov.convert_model(model, example_input=example)
    tokenize, precision = _tokenizer(task), "bf16" if roof.machine()["flags"] else "f32"

    def build(streams: int, budget: int) -> Encode:
        settings = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": task.threads}
        compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision, **settings})
        queue = ov.AsyncInferQueue(compiled, 2 * streams)

        def encode(texts: Sequence[str]) -> np.ndarray:
            ids = tokenize(texts)
            out = np.empty((len(ids), graph.output(0).partial_shape[1].get_length()), np.float32)

            def keep(request: ov.InferRequest, rows: np.ndarray) -> None:
                out[rows] = request.get_output_tensor(0).data

            queue.set_callback(keep)
            for rows, *batch in _batches(ids, budget):
                queue.start_async(dict(enumerate(batch)), rows)
            queue.wait_all()
            return out

        return encode

    streams = sorted({1, max(task.threads // 4, 1), task.threads})
    encode, (streams, budget) = _fastest(build, product(streams, BUDGETS), task.sample)
    return encode, f"{precision}, {streams} streams, {budget} tokens"


def onnxruntime(task: Task) -> tuple[Encode, str]:
    """ONNX Runtime in float32 (its CPU kernels have no bfloat16): the graph of models.py with attention, embeddings
    and layer norms fused, all of the session's optimisations on top, sorted batches bounded in tokens."""
    import onnxruntime as ort

    tokenize = _tokenizer(task)

    def build(workers: int, budget: int) -> Encode:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = task.threads // workers
        path = str(task.folder / "model.onnx")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        width = session.get_outputs()[0].shape[-1]

        def encode(texts: Sequence[str]) -> np.ndarray:
            ids = tokenize(texts)
            out = np.empty((len(ids), width), np.float32)

            def embed(batch: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
                rows, given, mask = batch
                names = {"input_ids": given, "attention_mask": mask, "token_type_ids": np.zeros_like(given)}
                hidden = session.run(None, names)[0]
                # the mean is a sum and a length: normalising takes the length away
                sums = np.matmul(mask[:, None].astype(np.float32), hidden)[:, 0]
                out[rows] = sums / np.linalg.norm(sums, axis=1, keepdims=True)

            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(embed, _batches(ids, budget)))
            return out

        return encode

    encode, (workers, budget) = _fastest(build, product(sorted({1, task.threads}), BUDGETS), task.sample)
    return encode, f"float32, {workers} x {task.threads // workers} threads, {budget} tokens"


def fastembed(task: Task) -> tuple[Encode, str]:
    """fastembed itself with its defaults (batches of 256 in the order given), on the same ONNX file as onnxruntime:
    it can load a local folder, though not without a name it knows."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    width = json.loads((task.folder / "config.json").read_text())["hidden_size"]
    TextEmbedding.add_custom_model(
        model="benchmark",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="benchmark"),
        dim=width,
        model_file="model.onnx",
    )
    model = TextEmbedding("benchmark", specific_model_path=str(task.folder), threads=task.threads)
    return lambda texts: np.stack(list(model.embed(texts))), "batches of 256"


# name -> how to load it, the packages whose versions matter, whether it needs model.onnx, whether it runs in the older
# environment of peers.txt
SIDES: dict[str, tuple[Callable[[Task], tuple[Encode, str]], str, bool, bool]] = {
    "raybert": (raybert, "raybert torch transformers", False, False),
    "sentence-transformers": (
        sentence_transformers,
        "sentence-transformers torch transformers",
        False,
        False,
    ),
    "sentence-transformers-bf16": (sentence_transformers_bf16, "sentence-transformers torch", False, False),
    "sentence-transformers-openvino": (
        sentence_transformers_openvino,
        "sentence-transformers optimum-intel openvino transformers",
        False,
        True,
    ),
    "openvino": (openvino, "openvino torch transformers", False, False),
    "onnxruntime": (onnxruntime, "onnxruntime onnx", True, False),
    "fastembed": (fastembed, "fastembed onnxruntime", True, True),
}


def _pooled_model(task: Task) -> tuple[object, dict[str, object]]:
    """The transformers model with pooling and normalising behind it, and an input to trace it with."""
    import torch
    from transformers import AutoModel

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(task.folder, attn_implementation="sdpa")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=torch.zeros_like(input_ids),
            )[0]
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return mean / mean.norm(dim=1, keepdim=True)

    example = {name: torch.ones(2, 7, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    return Pooled().eval(), example


def _tokenizer(task: Task) -> Callable[[Sequence[str]], list[list[int]]]:
    """The folder's tokenizer without padding: texts to lists of ids."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(task.folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(task.max_length)
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]


def _batches(ids: list[list[int]], budget: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows, ids, mask) of every batch, longest texts first, rows x longest <= budget."""
    lengths = np.array([len(row) for row in ids])
    order = np.argsort(-lengths, kind="stable")
    found, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        rows = order[start : start + max(budget // longest, 1)]
        mask = (np.arange(longest) < lengths[rows][:, None]).astype(np.int64)
        given = np.zeros_like(mask)
        given[mask > 0] = np.concatenate([ids[row] for row in rows])
        found.append((rows, given, mask))
        start += len(rows)
    return found


def _fastest(
    build: Callable[[int, int], Encode], choices: product, sample: Sequence[str]
) -> tuple[Encode, tuple[int, int]]:
    """Of all choices the one that encodes the sample in the least time, best of two runs after one to warm up (of one
    where that is far off)."""
    best, found = float("inf"), None
    for choice in choices:
        encode = build(*choice)
        encode(sample)
        seconds = _seconds(encode, sample)
        if seconds < 1.2 * best:
            seconds = min(seconds, _seconds(encode, sample))
        print(f"{choice}: {seconds:.3f} s", file=sys.stderr)
        if seconds < best:
            best, found = seconds, (encode, choice)
    assert found is not None, "no choice was given"
    return found


def _seconds(encode: Encode, texts: Sequence[str]) -> float:
    started = time.perf_counter()
    encode(texts)
    return time.perf_counter() - started


def main(argv: list[str]) -> int:
    """Load one side and obey; see the top of the file."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    side, folder, max_length, threads, file = argv
    texts = json.loads(Path(file).read_text())
    load, packages, *_ = SIDES[side]
    # every eighth text, but not less than a few batches' worth
    sample = texts[:: max(min(8, len(texts) // 8), 1)]
    try:
        encode, chosen = load(Task(Path(folder), int(max_length), int(threads), sample))
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": error.name}), file=answers)
        return 0
    encode(sample)
    versions = {name: importlib.metadata.version(name) for name in packages.split()}
    print(json.dumps({"chosen": chosen, "versions": versions}), file=answers)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "round":
            started = time.perf_counter()
            vectors = encode(texts)
            print(json.dumps({"seconds": time.perf_counter() - started}), file=answers)
        else:
            np.save(rest[0], np.asarray(vectors)[[int(row) for row in rest[1].split(",")]])
            print(json.dumps({"saved": rest[0]}), file=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
