"""The scripts in jobs/ are what their first lines say."""

import ast
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from raybert.__main__ import VERBS, parse

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for path in (ROOT / "jobs").glob("*.py") if path.stem in VERBS)


def test_there_is_one_for_each_job():
    assert [path.stem for path in SCRIPTS] == [
        *("embed", "evaluate", "finetune", "predict", "prepare", "pretrain", "search")
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_its_docstring_shows_a_line_that_works(script, monkeypatch):
    monkeypatch.chdir(ROOT)
    tree = ast.parse(script.read_text())
    (line,) = re.findall(r"^ *(ray job submit .*)$", ast.get_docstring(tree), re.MULTILINE)
    words = shlex.split(line)
    assert words[: words.index("--") + 3] == [
        *("ray", "job", "submit", "--working-dir", ".", "--", "python", f"jobs/{script.stem}.py")
    ]
    assert parse(script.stem, words[words.index("--") + 3 :])
    code = script.read_text().split('"""')[2].strip().splitlines()
    assert len(code) < 10


def test_its_exit_code_is_that_of_the_verb():
    done = subprocess.run(
        [sys.executable, "jobs/embed.py", "output.pat=x"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "did you mean" in done.stderr


def test_what_ray_sends_of_the_repository_is_small(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    assert package.stat().st_size < 3 << 20
    names = set(zipfile.ZipFile(package).namelist())
    assert {"jobs/embed.py", "jobs/embed.yaml", "raybert/__main__.py"} <= names
    assert not [name for name in names if name.startswith((".git/", ".venv/", "demo/", "tests/"))]
