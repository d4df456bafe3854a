"""Every command of the README works."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert.__main__ import parse
from tests.conftest import sentences
from tests.serve.test_command import service

REPO = Path(__file__).parent.parent
README = (REPO / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in blocks("bash")
    for line in block.splitlines()
    if line.startswith("raybert ") and "--help" not in line
]


def test_the_readme_shows_every_verb():
    assert {command[0] for command in COMMANDS} == {
        "embed",
        "prepare",
        "pretrain",
        "finetune",
        "evaluate",
        "predict",
        "probe",
        "verify",
        "vocabulary",
        "search",
        "serve",
        "doctor",
    }


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_use_settings_that_exist(command):
    assert parse(command[0], command[1:])


def test_the_two_commands_on_top_are_targets_of_the_makefile():
    targets = re.findall(r"^make (\S+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert targets == ["demo", "test"]
    makefile = (REPO / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_and_python_run_as_they_stand(tmp_path, tiny):
    """In a folder with docs/ and model/; only the hub name and the dots are filled in."""
    (tmp_path / "docs").mkdir()
    shutil.copytree(tiny, tmp_path / "model")
    shutil.copytree(REPO / "jobs", tmp_path / "jobs")
    table = pa.table({"text": sentences(50), "package": ["gzip", "zlib"] * 25, "kind": ["class"] * 50})
    pq.write_table(table, tmp_path / "docs/a.parquet")
    labelled = table.append_column("label", pa.array(["odd", "even"] * 25))
    for name in ("train", "dev"):
        pq.write_table(labelled, tmp_path / f"{name}.parquet")
    environment = {**os.environ, "PYTHONPATH": str(REPO)}

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    filled = {
        "model.name=sentence-transformers/all-MiniLM-L6-v2": "model.name=model/",
        "model.name=...": "model.name=model/",
        "data.path=...": "data.path=docs/",
        "output.path=...": "output.path=elsewhere/",
        "train.steps=100000": "train.steps=2",
        "model.hidden=256": "model.hidden=64",
    }
    for command in COMMANDS:
        if command[0] == "serve":
            continue  # below
        words = [filled.get(word, word) for word in command]
        if command[0] == "embed" and "dry_run=true" not in words:
            words.append("data.columns=package,kind")  # what the search below filters on
        if command[0] == "pretrain":
            words.append("train.global_batch_tokens=512")
        if command[0] == "finetune":
            words.append("train.epochs=1")
        out = run(sys.executable, "-m", "raybert", *words)
        assert out.strip()
    shutil.rmtree(tmp_path / "vectors")
    code, _ = blocks("python")
    run(sys.executable, "-c", code)
    assert pq.read_table(tmp_path / "vectors/data").num_rows == 50


@pytest.mark.slow
def test_the_service_answers_as_the_readme_says(tmp_path, tiny):
    """On another port, with another model of that name."""
    model = shutil.copytree(tiny, tmp_path / "all-MiniLM-L6-v2")
    (command,) = (words for words in COMMANDS if words[0] == "serve")
    settings = [word.replace("sentence-transformers/all-MiniLM-L6-v2", str(model)) for word in command[1:]]
    with service(*settings) as (url, _):
        for line in re.findall(r"^curl .*", "\n".join(blocks("bash")), re.MULTILINE):
            words = shlex.split(line.replace("http://127.0.0.1:8000", url))
            out = subprocess.run([*words, "--silent", "--fail"], capture_output=True, text=True, check=True)
            assert "[" in out.stdout
        _, code = blocks("python")
        code = code.replace("http://127.0.0.1:8000", url) + "\nprint(len(found.data))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "2\n", done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(
    Path(sys.prefix) != REPO / ".venv", reason="runs in the environment that `make test` sets up"
)
def test_make_demo():
    shutil.rmtree(REPO / "demo", ignore_errors=True)
    done = subprocess.run(["make", "demo"], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20,000 = 20,000 embedded + 0 rejected" in done.stdout
    assert "gzip.open" in done.stdout
