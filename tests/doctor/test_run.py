"""The whole of it on this machine, and what runs on a node."""

import os
import socket
import sys
import time

import pytest

from raybert.__main__ import main
from raybert.config.doctor import DoctorConfig
from raybert.doctor import machine, model, storage
from raybert.doctor.command import diagnose
from raybert.doctor.findings import FAIL
from tests.cluster.processes import write_corpus


@pytest.fixture
def places(tmp_path):
    write_corpus(tmp_path / "in", 20, files=2)
    return [f"data.path={tmp_path}/in", f"output.path={tmp_path}/out"]


def test_a_machine_in_order_is_fit(ray_local, tiny, places, tmp_path, capsys):
    assert main(["doctor", "embed", f"model.name={tiny}", *places, "timeout=240"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "fit: 16 findings, 0 failed, 0 warning(s)" in out
    assert "2 file(s)" in out
    assert "written, listed, read and deleted, the same for all" in out
    assert "32 dimensions" in out
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in"]


def test_what_cannot_work_fails_with_its_fix(ray_local, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["model.name=no/such", f"data.path={tmp_path}/none", f"output.path={tmp_path}/file/out"]
    assert main(["doctor", "embed", *words, "workers.count=999"]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = {line.split()[1] for line in lines if line.startswith("FAIL")}
    assert failed == {"read", "write", "found", "room"}
    assert sum("fix:" in line for line in lines) >= len(failed)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_settings_that_do_not_fit_are_exit_2(capsys):
    assert main(["doctor", "embed", "model.nmae=x"]) == 2
    assert "did you mean 'model.name'" in capsys.readouterr().err


def test_a_node_that_hangs_is_a_failed_check(ray_local, monkeypatch):
    class Hangs(machine.Probe):
        def machine(self, asked):
            time.sleep(60)

    monkeypatch.setattr(machine, "Probe", Hangs)
    config = DoctorConfig(**{"doctor.timeout": 2})
    found = {each.check: each for each in diagnose(config).findings}
    assert found["answers"].state == FAIL
    assert "no answer within 2 s" in found["answers"].found


def test_the_facts_of_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = machine.examine(ports=[port], binds=[("127.0.0.1", port)])
    assert found["listens"][port] == ["127.0.0.1"]
    assert found["taken"][0][:2] == ["127.0.0.1", port]
    assert found["cpus"] >= 1
    assert found["memory"] > 1 << 28
    assert found["raybert"]["version"] == "0.1.0"
    assert found["versions"]["ray"]
    assert machine.examine()["raybert"]["digest"] == found["raybert"]["digest"]


def test_code_of_another_state_has_another_digest(tmp_path, monkeypatch):
    (tmp_path / "raybert").mkdir()
    (tmp_path / "raybert/__init__.py").write_text('__version__ = "0.1.0"\n')
    here = machine.examine()["raybert"]
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "raybert")
    other = machine.examine()["raybert"]
    assert other["version"] == here["version"]
    assert other["digest"] != here["digest"]


def test_a_probe_leaves_a_folder_as_it_was(tmp_path):
    path, token = str(tmp_path / "out"), "doctor-token"
    laid = storage.put_token(path, token)
    answer = storage.write_and_read(path, "doctor-mine", token)
    assert answer["shared"] is True
    assert answer["free"] > 0
    storage.clear(path, [token], made=laid["made"])
    assert not os.path.exists(path)
    os.mkdir(path)
    assert storage.write_and_read(path, "doctor-mine", token, patience=0)["shared"] is False
    assert os.listdir(path) == []


def test_a_folder_in_use_keeps_what_it_has(tmp_path):
    (tmp_path / "_raybert/tmp").mkdir(parents=True)
    (tmp_path / "_raybert/tmp/other").write_text("")
    storage.write_and_read(str(tmp_path), "doctor-mine", None)
    assert os.listdir(tmp_path / "_raybert/tmp") == ["other"]


def test_the_model_of_a_node(tiny, tmp_path):
    asked = {"name": tiny, "revision": None, "code": False, "tokenizer": False}
    whole = model.look(asked)
    assert len(whole["digest"]) == 12
    words = model.look({**asked, "tokenizer": True})
    assert words["digest"] != whole["digest"]
    gone = model.look({**asked, "name": str(tmp_path / "none")})
    assert gone["hub"] is False
    named = model.look({**asked, "name": "org/none"})
    assert named["hub"] is True
    assert named["offline"] is True
    assert "org/none" in named["error"]
