"""The sides of serve.py: how each server is started, and the small servers that are ours.

python tests/benchmarks/serving_sides.py bare MODEL PORT DTYPE       raybert's ASGI application under uvicorn, without Ray
python tests/benchmarks/serving_sides.py plain MODEL PORT DTYPE      sentence-transformers behind FastAPI
python tests/benchmarks/serving_sides.py batched MODEL PORT DTYPE    the same, waiting requests together through the model
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).parent.parent.parent
STOP_SECONDS = 50.0  # HAProxy drains for 30
START_SECONDS = 180.0


@dataclass(frozen=True)
class Side:
    """A server: `words` of its command with {python}, {infinity}, {model}, {port}, {onnx} to be filled in."""

    name: str
    path: str
    words: tuple[str, ...]


def _ours(ingress: str, dtype: str) -> tuple[str, ...]:
    words = (
        "{python}",
        "-m",
        "raybert",
        "serve",
        "model.name={model}",
        "serve.name=model",
        "serve.port={port}",
    )
    return (*words, f"serve.ingress={ingress}", f"model.dtype={dtype}")


def _routed(ingress: str) -> tuple[str, ...]:
    """The same model beside another, so behind the router; it has as many threads as alone."""
    words = ("{python}", "-m", "raybert", "serve", "models.model.model.name={model}", "serve.port={port}")
    words += ("models.model.workers.cpus=2", "models.other.model.name={model}", "models.other.workers.cpus=1")
    return (*words, f"serve.ingress={ingress}")


def _small(kind: str, dtype: str) -> tuple[str, ...]:
    return ("{python}", str(Path(__file__)), kind, "{model}", "{port}", dtype)


# optimum imports what torch 2.13 no longer has, for exporting, which is not done here
_INFINITY_RUN = """
import sys
from unittest.mock import MagicMock
sys.modules["torch.onnx.symbolic_opset14"] = MagicMock()
from infinity_emb.cli import cli
cli()
"""


def _infinity(engine: str, dtype: str, *more: str) -> tuple[str, ...]:
    words = ("{infinity}", "-c", _INFINITY_RUN, "v2", "--engine", engine, "--dtype", dtype, "--device", "cpu")
    words += (
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "--served-model-name",
        "model",
        "--log-level",
        "error",
    )
    return (*words, "--no-model-warmup", *more)


_V1, _INFINITY = "/v1/embeddings", "/embeddings"
SIDES = {
    side.name: side
    for side in (
        Side("raybert haproxy", _V1, _ours("haproxy", "auto")),
        Side("raybert proxy", _V1, _ours("proxy", "auto")),
        Side("raybert router haproxy", _V1, _routed("haproxy")),
        Side("raybert bare", _V1, _small("bare", "auto")),
        Side("raybert haproxy float32", _V1, _ours("haproxy", "float32")),
        Side("raybert proxy float32", _V1, _ours("proxy", "float32")),
        Side("raybert bare float32", _V1, _small("bare", "float32")),
        Side(
            "infinity torch",
            _INFINITY,
            _infinity("torch", "float32", "--model-id", "{model}", "--no-bettertransformer"),
        ),
        Side("infinity bettertransformer", _INFINITY, _infinity("torch", "float32", "--model-id", "{model}")),
        Side(
            "infinity torch bfloat16",
            _INFINITY,
            _infinity("torch", "bfloat16", "--model-id", "{model}", "--no-bettertransformer"),
        ),
        Side(
            "infinity onnx",
            _INFINITY,
            _infinity(
                "optimum",
                "auto",
                "--model-id",
                "{onnx}",
                "--onnx-disable-optimize",
                "--pooling-method",
                "mean",
            ),
        ),
        Side("st fastapi", _V1, _small("plain", "float32")),
        Side("st fastapi bfloat16", _V1, _small("plain", "bfloat16")),
        Side("st fastapi batched", _V1, _small("batched", "float32")),
        Side("st fastapi batched bfloat16", _V1, _small("batched", "bfloat16")),
    )
}


class Server:
    """A side's process tree, in a session of its own. Ends with `stop`."""

    def __init__(self, words: Sequence[str], log: Path, threads: int) -> None:
        quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._log = log
        self.process = subprocess.Popen(
            list(words),
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            cwd=REPO,
            start_new_session=True,
            env={**os.environ, **quiet, "OMP_NUM_THREADS": str(threads)},
        )

    def wait(self, port: int, path: str) -> None:
        """Until it answers. RuntimeError with the end of its log where it ends instead."""
        import httpx

        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                asked = {"model": "model", "input": "a"}
                if httpx.post(f"http://127.0.0.1:{port}{path}", json=asked, timeout=30).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.3)
        raise RuntimeError(f"the server does not start:\n{self._log.read_text()[-3000:]}")

    def tree(self) -> list[Any]:
        """psutil's processes, the first is the one that was started."""
        import psutil

        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Of all its processes that live."""
        import psutil

        total = 0.0
        for each in self.tree():
            try:
                times = each.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def rss(self) -> int:
        """Bytes of the process that holds the model: the largest."""
        import psutil

        found = [0]
        for each in self.tree():
            try:
                found.append(each.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        return max(found)

    def stop(self) -> None:
        """Ask it to end, then make sure that nothing of it is left."""
        import psutil

        try:
            tree = self.tree()
        except psutil.NoSuchProcess:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            print("  it did not stop by itself", flush=True)
        for each in tree:
            if each.is_running():
                each.kill()
        self.process.wait()


def free_port() -> int:
    """That nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _NoMetrics:
    """Ray's metrics need Ray."""

    def __getattr__(self, name: str) -> Any:
        return lambda *values: None


def bare(model: str, dtype: str) -> Any:
    """The ASGI application that a replica has."""
    from raybert.config import load
    from raybert.config.serving import ServedModelSettings, ServeSettings
    from raybert.corpus.session import cores
    from raybert.serve.app import application
    from raybert.serve.loading import load_engine
    from raybert.serve.model import Limits, ServedModel

    served = load(
        ServedModelSettings, settings={"model": {"name": model, "dtype": dtype}, "workers.cpus": cores()}
    )
    made = ServedModel("model", load_engine(served), Limits(), _NoMetrics())
    return application({"model": made}, ServeSettings())


def sentence_transformers(model: str, dtype: str, *, batched: bool) -> Any:
    """FastAPI with /v1/embeddings over one SentenceTransformer: a request in a thread, or all that wait together."""
    import asyncio
    import base64
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from fastapi import FastAPI
    from fastapi.responses import Response
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer

    class Asked(BaseModel):
        input: str | list[str]
        model: str
        encoding_format: str = "float"

    encoder = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    app = FastAPI()
    thread = ThreadPoolExecutor(1)  # two at a time would only share the cores
    waiting: list[tuple[list[str], asyncio.Future]] = []
    state = {"busy": False}

    def encode(texts: list[str]) -> Any:
        return (
            encoder.encode(texts, batch_size=16, show_progress_bar=False, convert_to_tensor=True)
            .float()
            .numpy()
        )

    async def work() -> None:
        loop = asyncio.get_running_loop()
        while waiting:
            taken, waiting[:] = waiting[:64], waiting[64:]
            try:
                found = await loop.run_in_executor(
                    thread, encode, [text for texts, _ in taken for text in texts]
                )
            except Exception as error:
                for _, future in taken:
                    future.set_exception(error)
                continue
            at = 0
            for texts, future in taken:
                future.set_result(found[at : at + len(texts)])
                at += len(texts)
        state["busy"] = False

    async def together(texts: list[str]) -> Any:
        future = asyncio.get_running_loop().create_future()
        waiting.append((texts, future))
        if not state["busy"]:
            state["busy"] = True
            state["task"] = asyncio.create_task(work())
        return await future

    @app.post("/v1/embeddings")
    async def embeddings(asked: Asked) -> Response:
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        if batched:
            vectors = await together(texts)
        else:
            vectors = await asyncio.get_running_loop().run_in_executor(thread, encode, texts)
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if asked.encoding_format == "base64"
                else vector,
            }
            for i, vector in enumerate(vectors)
        ]
        import orjson

        body = {"object": "list", "data": data, "model": asked.model}
        return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    return app


def main(argv: Sequence[str]) -> int:
    """Serve until the end of the process."""
    import uvicorn

    kind, model, port, dtype = argv
    if kind == "bare":
        app = bare(model, dtype)
    else:
        app = sentence_transformers(model, dtype, batched=kind == "batched")
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
