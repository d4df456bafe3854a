"""What is said of a cluster, by what its nodes answered."""

import pytest

from raybert.doctor.cluster_checks import check_cluster
from raybert.doctor.findings import FAIL, OK, WARN, Finding
from raybert.doctor.needs import Needs
from tests.doctor.facts import GIB, facts, machine, node

EMBED = Needs(verb="embed")


def off(found, needs=EMBED) -> list[Finding]:
    """What is not in order."""
    return [each for each in check_cluster(found, needs) if each.state != OK]


def test_a_healthy_cluster_is_told_check_by_check():
    found = check_cluster(facts(), EMBED)
    assert [each.check for each in found] == [
        *("nodes", "versions", "clock", "access", "CPUs", "memory", "/dev/shm", "disk", "open files")
    ]
    assert not off(facts())
    assert "3 alive, 24 CPUs" in found[0].found


@pytest.mark.parametrize(
    ("change", "check", "state", "said", "fix"),
    [
        ({"python": "3.12.1"}, "python", FAIL, "python 3.12.1, 3.11.7 of the driver", "python 3.11.7"),
        ({"versions": {**machine()["versions"], "ray": "2.59.0"}}, "ray", FAIL, "ray 2.59.0", "ray 2.60.0"),
        ({"versions": {**machine()["versions"], "torch": "2.8.0"}}, "torch", FAIL, "2.13.0 elsewhere", "one image"),
        ({"versions": {**machine()["versions"], "pyarrow": None}}, "pyarrow", FAIL, "no pyarrow", "image"),
        ({"raybert": None}, "raybert", FAIL, "no raybert", "--working-dir"),
        (
            {"raybert": {"version": "0.1.0", "digest": "bbbbbbbb", "folder": "/old/raybert"}},
            *("raybert", FAIL, "(code bbbbbbbb), 0.1.0 (code aaaaaaaa) of the driver (in /old/raybert)", "code aaaa"),
        ),
        ({"error": "no answer within 60 s"}, "answers", FAIL, "no answer", "restart Ray"),
        ({"cpus": 2.0}, "CPUs", WARN, "Ray counts 8 CPUs, the machine or its cgroup gives 2", "--num-cpus=2"),
        ({"memory": 20 * GIB}, "memory", WARN, "counts 58.0 GiB, the limit is 20.0", "--object-store-memory"),
        ({"shm": {"size": GIB // 16, "free": 0}}, "/dev/shm", WARN, "has 0.1", "give /dev/shm 18 GiB"),
        ({"temp": {"path": "/r", "size": 100 * GIB, "free": 4 * GIB}}, "disk", FAIL, "95% full", "--temp-dir"),
        ({"temp": {"path": "/r", "size": 100 * GIB, "free": 9 * GIB}}, "disk", WARN, "less than", "--temp-dir"),
        ({"files": 1024}, "open files", WARN, "1,024 open files", "ulimit -n 65536"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_one_node_is_off(change, check, state, said, fix):
    (found,) = off(facts({"b": {**machine(), **change} if "error" not in change else change}))
    assert (found.check, found.state, found.nodes) == (check, state, ("b",))
    assert said in found.found
    assert fix in found.fix


def test_a_build_for_other_hardware_is_the_same_version():
    other = machine(versions={**machine()["versions"], "torch": "2.13.0+cu126"})
    assert not off(facts({"b": other}))


def test_a_driver_without_torch_goes_by_most_nodes():
    driver = machine(versions={**machine()["versions"], "torch": None})
    other = machine(versions={**machine()["versions"], "torch": "2.8.0"})
    assert not off(facts(driver=driver))
    (found,) = off(facts({"c": other}, driver=driver))
    assert found.nodes == ("c",)


def test_a_private_ray_has_a_cpu_more_than_there_are():
    assert not off(facts({"b": machine(cpus=7.0)}))
    assert [each.check for each in off(facts({"b": machine(cpus=6.0)}))] == ["CPUs"]


@pytest.mark.parametrize(
    ("ahead", "state", "said"),
    [(2.5, WARN, "2.5 s ahead of"), (-90.0, WARN, "90.0 s behind"), (900.0, FAIL, "900.0 s ahead of")],
)
def test_a_clock_is_off(ahead, state, said):
    clocks = {"a": {"ahead": 0.0, "within": 0.1}, "b": {"ahead": ahead, "within": 0.1}}
    (found,) = off(facts(clocks=clocks))
    assert (found.check, found.state, found.nodes) == ("clock", state, ("b",))
    assert said in found.found
    assert "chrony" in found.fix


def test_a_slow_answer_is_no_skew():
    assert not off(facts(clocks={"a": {"ahead": 5.0, "within": 4.0}}))


def test_nodes_that_died_are_told():
    (found,) = off(facts(dead=(("10.0.0.9", "health check failed"),)))
    assert (found.check, found.state) == ("lost nodes", WARN)
    assert "10.0.0.9: health check failed" in found.found


def test_a_cluster_without_cpus_runs_nothing():
    (found,) = off(facts(nodes=tuple(node(name, CPU=0.0) for name in "abc")))
    assert (found.check, found.state) == ("nodes", FAIL)


@pytest.mark.parametrize(
    ("auth", "addresses", "state"),
    [
        ("disabled", ("*",), WARN),
        ("disabled", ("10.0.0.1",), WARN),
        ("disabled", ("127.0.0.1", "::1"), OK),
        ("token", ("*",), OK),
    ],
)
def test_ports_without_a_token(auth, addresses, state):
    found = facts(auth=auth, ports={"Ray (GCS)": (6379, addresses)})
    (access,) = (each for each in check_cluster(found, EMBED) if each.check == "access")
    assert access.state == state
    assert ("RAY_AUTH_MODE=token" in access.fix) == (state == WARN)


def test_a_node_does_not_reach_the_next():
    links = {"a": {"to": "b"}, "b": {"to": "c", "error": "timed out"}, "c": {"to": "a"}}
    (found,) = off(facts(links=links))
    assert (found.check, found.state, found.nodes) == ("network", FAIL, ("b",))
    assert "c is not reached: timed out" in found.found
