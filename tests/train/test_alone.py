"""A folder has one driver; a killed one is no obstacle."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raybert.corpus.store import Store
from raybert.train import alone as module
from raybert.train.alone import DRIVER, alone

HOLD = """
import sys, time
from raybert.corpus.store import Store
from raybert.train.alone import alone
with alone(Store(sys.argv[1]), "run/"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_living_driver_is_not_disturbed_and_a_killed_one_is_replaced(tmp_path):
    store = Store(str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=f"run/ is trained by process {other.pid} on .*; wait for it"),
            alone(store, "run/"),
        ):
            pass
        other.send_signal(signal.SIGKILL)
    assert store.exists(DRIVER)
    with alone(store, "run/"):
        assert json.loads(store.read(DRIVER))["process"][0] != other.pid
    assert not store.exists(DRIVER)


def test_another_machine_is_asked_for_a_sign_of_life(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "BEAT", 0.1)
    store = Store(str(tmp_path))
    with alone(store, "run/"):
        time.sleep(0.3)
        assert json.loads(store.read(DRIVER))["beat"] >= 1
        monkeypatch.setattr(module.socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(ValueError, match="is trained by process"), alone(store, "run/"):
            pass
        kept = store.read(DRIVER)
    store.write(DRIVER, kept)  # as it was left when the machine was lost
    monkeypatch.setattr(module.socket, "gethostname", lambda: "a third")
    with alone(store, "run/"):
        assert json.loads(store.read(DRIVER))["host"] == "a third"
    assert "alive?" in capsys.readouterr().err


def test_a_number_that_is_used_again_is_another_process(tmp_path):
    store = Store(str(tmp_path))
    with alone(store, "run/"):
        mine = json.loads(store.read(DRIVER))
    number, began = mine["process"]
    store.write(DRIVER, json.dumps({**mine, "process": [number, began - 1]}).encode())
    with alone(store, "run/"):
        pass
