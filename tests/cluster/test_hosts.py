"""The hosts themselves: apart from each other and from us, cut off and back, and gone without a trace."""

import contextlib
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.cluster.hosts import Hosts, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


def reaches(one, other) -> bool:
    ask = one.python("-c", f"import socket; socket.create_connection(('{other.address}', 7777), 1)")
    ask.communicate()
    return ask.returncode == 0


@pytest.fixture
def listening():
    """Two hosts, of which the second listens."""
    with Hosts(2) as hosts:
        code = "import socket, signal; s = socket.create_server(('0.0.0.0', 7777)); print('up', flush=True); signal.pause()"
        server = hosts[1].start(["sh", "-c", f'sleep 600 & exec python3 -c "{code}"'])
        assert server.stdout.readline() == "up\n"
        yield hosts, server


def test_only_hosts_of_one_switch_reach_each_other(listening):
    hosts, _ = listening
    assert reaches(hosts[0], hosts[1])
    with Hosts(1) as others:
        assert not reaches(others[0], hosts[1])


def test_a_host_is_cut_off_and_comes_back(listening):
    hosts, server = listening
    hosts.cut(hosts[1])
    assert not reaches(hosts[0], hosts[1])
    assert server.poll() is None
    hosts.mend(hosts[1])
    assert reaches(hosts[0], hosts[1])


def test_a_killed_host_has_no_processes_left_but_those_spared(listening):
    hosts, server = listening
    assert len(hosts[1].pids()) == 2
    hosts.kill(hosts[1], spare=[server.pid])
    assert hosts[1].pids() == [server.pid]
    assert server.poll() is None
    hosts.kill(hosts[1])
    assert server.wait(5) == -9


def test_nothing_is_left_when_a_test_fails():
    with contextlib.suppress(ZeroDivisionError), Hosts(2) as hosts:
        folder, names = hosts.folder, [host.name for host in hosts.hosts]
        sleeper = hosts[1].start(["sh", "-c", "sleep 600 & sleep 600"])
        while len(hosts[1].pids()) < 2:
            pass
        pids = hosts[1].pids()
        raise ZeroDivisionError
    sleeper.wait(5)
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert not [name for name in names if name in left]
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    assert not Path(folder).exists()
