"""raybert serve, as a user starts and stops it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

from raybert import Encoder
from tests.conftest import raybert

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


@contextmanager
def service(*settings: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a service that answers, and its process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "raybert", "serve", "port=0", *settings],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        cwd=ROOT,
    )
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"at (http://\S+)", line):
                yield found[1], process
                return
        pytest.fail(f"exit {process.wait()}: {''.join(lines)}")
    finally:
        process.terminate()
        try:
            process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.mark.slow
@pytest.mark.parametrize("ingress", ["proxy", "haproxy"])
def test_it_serves_what_the_encoder_says_until_it_is_stopped(tiny, ingress):
    with service(f"model.name={tiny}", "model.dtype=float32", "name=tiny", f"ingress={ingress}") as (
        url,
        process,
    ):
        texts = ["the quick brown fox", "reads gzip files"]
        reply = httpx.post(f"{url}/v1/embeddings", json={"input": texts, "model": "tiny"}, timeout=60)
        assert reply.status_code == 200, reply.text
        vectors = np.array([each["embedding"] for each in reply.json()["data"]], np.float32)
        expected = Encoder.load(tiny, dtype="float32").encode(texts)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        assert len(reply.headers.get_list("x-request-id")) == 1
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ([], "model.name is missing"),
        (["model.name=m", "host=0.0.0.0"], "serve.host=0.0.0.0 without keys"),
        (["model.name=m", "anonymous=false"], "without keys"),
        (["model.name=m", "keys_from=/not/there"], "serve.keys_from=/not/there cannot be read"),
        (["model.name=/not/there"], "model.name '/not/there' is no folder"),
        (["model.name=m", "prot=1"], "did you mean"),
    ],
)
def test_settings_that_cannot_be_used(settings, told):
    started = time.monotonic()
    done = raybert("serve", *settings, check=False)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert time.monotonic() - started < 30  # before Ray is started


def test_a_port_that_is_taken(tiny):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = raybert("serve", f"model.name={tiny}", f"port={port}", check=False)
    assert done.returncode == 2
    assert f"serve.port={port}" in done.stderr


@pytest.mark.parametrize("missing", ["orjson", "fastapi"])
def test_what_serving_needs_is_not_installed(tiny, missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from raybert.__main__ import main; "
    code += f"sys.exit(main(['serve', 'model.name={tiny}', 'serve.port=0']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert "pip install 'raybert[serve]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
