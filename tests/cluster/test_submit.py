"""Every job by `ray job submit`, and the service by `serve deploy`, on one head that asks for a token."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.cluster.processes import REPO, free_ports, write_corpus
from tests.conftest import sentences

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TOOLS = Path(sys.executable).parent
KEY = "a-key-of-the-test"


@dataclass
class Head:
    """A Ray head of 4 CPUs and no GPU on this machine, and how clients that have its token reach it."""

    url: str
    environment: dict[str, str]
    serve_port: int

    def ray(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [TOOLS / "ray", *words],
            cwd=REPO,
            env={**self.environment, "RAY_API_SERVER_ADDRESS": self.url, **environment},
            capture_output=True,
            text=True,
        )

    def submit(self, *words: str, code: int = 0, options: tuple[str, ...] = (), **environment: str) -> str:
        """As the docstrings of jobs/ say it. What the client printed, which ends with `code`."""
        python = ("--", "python", *words)
        done = self.ray("job", "submit", "--working-dir", ".", *options, *python, **environment)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def jobs(self) -> list[dict]:
        token = Path(self.environment["HOME"], ".ray/auth_token").read_text()
        reply = httpx.get(f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {token}"}, timeout=60)
        return reply.raise_for_status().json()

    def answers(self) -> bool:
        try:
            return self.jobs() == []
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Ray's sockets have long names, and a path of a socket at most 107 letters
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    (folder / ".ray").mkdir()
    (folder / ".ray/auth_token").write_text("0123456789abcdef" * 4)
    gcs, dashboard, client, metrics, agent, serve_port = free_ports(6)
    environment = {
        **os.environ,
        "HOME": str(folder),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
        "RAY_AUTH_MODE": "token",
        "RAYBERT_KEYS": KEY,
        "RAY_raylet_start_wait_time_s": "120",  # on a busy machine
        "PATH": f"{TOOLS}:{os.environ['PATH']}",
    }
    for name in ("RAY_ADDRESS", "HF_HUB_OFFLINE"):
        environment.pop(name, None)
    options = {
        "port": gcs,
        "dashboard-port": dashboard,
        "ray-client-server-port": client,
        "metrics-export-port": metrics,
        "dashboard-agent-listen-port": agent,
        "temp-dir": folder / "t",
        "num-cpus": 4,
        "num-gpus": 0,
        "object-store-memory": 300 << 20,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(
            [TOOLS / "ray", "start", "--head", "--block", "--dashboard-host=127.0.0.1", *words],
            cwd=REPO,  # as the image's WORKDIR
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            made = Head(f"http://127.0.0.1:{dashboard}", environment, serve_port)
            wait_for(made.answers, 120)
            yield made
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                kill_all(process.pid)
                print((folder / "log").read_text())
                shutil.rmtree(folder, ignore_errors=True)


def kill_all(session: int) -> None:
    """What is left of a session of processes."""
    import psutil

    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                process.kill()
        except (psutil.Error, OSError):
            continue


def wait_for(condition, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.5)


SHAPE = ["model.layers=1", "model.hidden=32", "model.heads=2", "train.global_batch_tokens=256"]
ALONE = ["workers.count=1", "workers.cpus=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a labelled table."""
    folder = tmp_path_factory.mktemp("submit")
    write_corpus(folder / "docs", 300)
    table = pa.table({"text": sentences(60), "label": ["odd", "even"] * 30})
    pq.write_table(table, folder / "labelled.parquet")
    return folder


@pytest.fixture(scope="module")
def vectors(head: Head, place: Path, tiny: str) -> Path:
    settings = [f"model.name={tiny}", f"data.path={place}/docs", f"output.path={place}/vectors", "data.id=id"]
    out = head.submit("jobs/embed.py", "jobs/embed.yaml", *settings, "data.columns=text", "workers.count=1")
    assert "300 = 300 embedded + 0 rejected" in out
    return place / "vectors"


@pytest.fixture(scope="module")
def tuned(head: Head, place: Path, tiny: str) -> Path:
    settings = [f"model.name={tiny}", f"data.path={place}/labelled.parquet", f"output.path={place}/tuned"]
    more = [
        f"data.validation={place}/labelled.parquet",
        "train.epochs=1",
        "workers.count=1",
        "workers.cpus=1",
    ]
    head.submit("jobs/finetune.py", "jobs/classify.yaml", *settings, *more)
    return place / "tuned/model"


def test_embed(vectors):
    assert pq.read_table(vectors / "data").num_rows == 300


def test_search_without_a_folder_to_send(head, vectors):
    """The image's own copy of jobs/, in the folder where the nodes were started."""
    python = ("--", "python", "jobs/search.py", str(vectors), "a quick fox", "k=3", "format=json")
    done = head.ray("job", "submit", *python)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    (found,) = json.loads("\n".join(lines[lines.index("[") : len(lines) - lines[::-1].index("]")]))
    assert len(found) == 3


def test_prepare_and_pretrain(head, place, tiny):
    settings = [f"model.name={tiny}", f"data.path={place}/docs", f"output.path={place}/tokens"]
    head.submit("jobs/prepare.py", "jobs/prepare.yaml", *settings, "prepare.max_length=32", "workers.count=1")
    settings = [f"data.path={place}/tokens", f"output.path={place}/run", "train.steps=2"]
    head.submit("jobs/pretrain.py", "jobs/pretrain.yaml", *settings, *SHAPE, *ALONE)
    assert (place / "run/model/model.safetensors").exists()


def test_evaluate_and_predict(head, place, tuned):
    settings = [f"model.name={tuned}", f"data.path={place}/labelled.parquet", "workers.count=1"]
    head.submit("jobs/evaluate.py", "jobs/evaluate.yaml", *settings, f"output.path={place}/report")
    assert json.loads((place / "report/metrics.json").read_text())
    head.submit("jobs/predict.py", "jobs/predict.yaml", *settings, f"output.path={place}/labels")
    assert pq.read_table(place / "labels/data").num_rows == 60


WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None  # as if it were not installed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_drivers_need_no_torch(head, place, vectors, tuned, tiny):
    here, model = [f"data.path={place}/labelled.parquet", "workers.count=1"], f"model.name={tiny}"
    validation = f"data.validation={place}/labelled.parquet"
    for name, *settings in (
        ("embed", *here, model),
        ("predict", *here, f"model.name={tuned}"),
        ("prepare", *here, model, "prepare.max_length=32"),
        ("pretrain", f"data.path={place}/untorched-prepare", "train.steps=2", *SHAPE, *ALONE),
        ("finetune", *here, model, validation, "task.name=classification", "train.epochs=1", *ALONE),
    ):
        output = f"output.path={place}/untorched-{name}"
        head.submit("-c", WITHOUT_TORCH, f"jobs/{name}.py", *settings, output)
    for name in ("pretrain", "finetune"):
        assert (place / f"untorched-{name}/model/model.safetensors").exists()


def test_a_bad_setting_fails_the_job_with_one_line(head):
    out = head.submit("jobs/embed.py", "jobs/embed.yaml", "output.pat=x", code=1)
    assert "did you mean 'output.path'" in out
    assert "Traceback" not in out
    last = max(head.jobs(), key=lambda job: job["start_time"])
    assert last["status"] == "FAILED"
    assert "exit code 2" in last["message"]


def test_variables_come_with_the_job(head, place):
    options = ("--runtime-env-json", json.dumps({"env_vars": {"HF_HUB_OFFLINE": "1"}}))
    settings = ["model.name=nobody/nothing", f"data.path={place}/docs", f"output.path={place}/none"]
    out = head.submit("jobs/embed.py", "jobs/embed.yaml", *settings, code=1, options=options)
    assert "(HF_HUB_OFFLINE is set)" in out


def test_nobody_submits_without_the_token(head, tmp_path):
    before = len(head.jobs())
    for environment in (
        {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_TOKEN": "f" * 64},
    ):
        done = head.ray("job", "submit", "--", "python", "-c", "print('in')", **environment)
        assert done.returncode != 0
        assert "in\n" not in done.stdout
    assert httpx.get(f"{head.url}/api/jobs/").status_code == 401
    assert httpx.post(f"{head.url}/api/jobs/", json={"entrypoint": "true"}).status_code == 401
    assert len(head.jobs()) == before


def test_a_stopped_job_is_submitted_again_and_goes_on(head, tiny, tmp_path):
    write_corpus(tmp_path / "docs", 6000)
    settings = [
        f"model.name={tiny}",
        f"data.path={tmp_path}/docs",
        f"output.path={tmp_path}/out",
        "data.id=id",
    ]
    words = ("jobs/embed.py", "jobs/embed.yaml", *settings, "output.rows_per_shard=20", "workers.count=1")
    head.submit(*words, options=("--no-wait", "--submission-id", "first"))
    done = tmp_path / "out/data"
    wait_for(lambda: done.exists() and len(list(done.iterdir())) > 5, 180)
    stopped = head.ray("job", "stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    finished = {path: path.stat().st_mtime_ns for path in done.iterdir()}
    assert 5 < len(finished) < 300
    assert next(job for job in head.jobs() if job["submission_id"] == "first")["status"] == "STOPPED"
    assert "6,000 embedded + 0 rejected" in head.submit(*words)
    assert pq.read_table(done).num_rows == 6000
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())


def test_the_service(head, tiny, tmp_path):
    config = yaml.safe_load((REPO / "jobs/serve.yaml").read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": head.serve_port}
    args = config["applications"][0]["args"]
    args["model"] = {"name": tiny}
    args["workers"] = {"count": 1, "cpus": 1}
    file = tmp_path / "serve.yaml"

    def deploy() -> None:
        file.write_text(yaml.safe_dump(config))
        words = [TOOLS / "serve", "deploy", "--address", head.url, file]
        subprocess.run(words, cwd=REPO, env=head.environment, check=True, capture_output=True)

    def status() -> dict:
        words = [TOOLS / "serve", "status", "--address", head.url]
        done = subprocess.run(words, env=head.environment, capture_output=True, text=True, check=True)
        return yaml.safe_load(done.stdout)["applications"]["raybert"]

    def ask(key: str) -> httpx.Response:
        url = f"http://127.0.0.1:{head.serve_port}/v1/embeddings"
        return httpx.post(
            url,
            json={"model": "tiny", "input": "a text"},
            headers={"Authorization": f"Bearer {key}"},
            timeout=30,
        )

    deploy()
    wait_for(lambda: status()["status"] == "RUNNING", 120)
    assert ask(KEY).status_code == 200
    assert ask("another").status_code == 401
    args["worker"] = {}
    deploy()
    wait_for(lambda: status()["status"] == "DEPLOY_FAILED", 120)
    assert "unknown setting 'worker'" in status()["message"]
    assert ask(KEY).status_code == 200  # what was good still answers
