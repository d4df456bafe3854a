"""The command as a user meets it, in processes of its own."""

import subprocess
import sys

import pytest

from tests.conftest import raybert


def test_help_lists_every_verb_and_setting():
    assert {"embed", "verify", "search"} <= set(raybert("--help").stdout.split())
    out = raybert("embed", "--help").stdout
    assert "output.rows_per_shard" in out
    assert "[4096]" in out


@pytest.mark.parametrize(
    "code", ["import raybert", "import raybert.__main__ as m; m.main(['embed', '--help'])"]
)
def test_help_imports_neither_torch_nor_ray(code):
    check = "import sys; sys.exit(bool({'torch', 'ray', 'pyarrow', 'transformers'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", f"{code}\n{check}"], stdout=subprocess.DEVNULL).returncode == 0
    )


def test_the_driver_of_a_job_imports_no_torch():
    code = "import raybert.doctor.command, raybert.embed, raybert.evaluate.evaluate, raybert.finetune, raybert.predict, raybert.prepare, raybert.probe, raybert.search, raybert.train.pretrain, raybert.verify, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_public_name_is_the_function_whatever_was_imported_before():
    code = "import raybert, raybert.verify; from raybert import verify; assert callable(raybert.verify) and callable(verify)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "model.nmae=x"], "did you mean 'model.name'"),
        (["embed"], "model.name is missing"),
        (["embed", "model.name=m", "data.path=/nonexistent", "output.path=/tmp/none"], "/nonexistent"),
        (["embde"], "did you mean 'embed'"),
        (["verify"], "data.path is missing"),
    ],
)
def test_bad_settings_are_one_line_and_exit_2(arguments, message):
    done = raybert(*arguments, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
