"""What is said of a job, by what the nodes answered."""

import pytest

from raybert.config import EmbedConfig, ServeConfig
from raybert.doctor.findings import FAIL, OK, WARN, Finding
from raybert.doctor.job_checks import check_job
from raybert.doctor.needs import Model, Needs
from tests.doctor.facts import facts, gpu, machine, node

NEEDS = Needs(verb="embed", config=EmbedConfig())


def off(found, needs=NEEDS) -> list[Finding]:
    """What is not in order."""
    return [each for each in check_job(found, needs) if each.state != OK]


def only(found, needs, check) -> Finding:
    (one,) = (each for each in check_job(found, needs) if each.check == check)
    return one


@pytest.mark.parametrize(
    ("promised", "seen", "state", "fix"),
    [
        (2, gpu(2), OK, ""),
        (2, gpu(1), FAIL, "driver 550.54 may be too old"),
        (2, gpu(0, driver=None), FAIL, "--gpus all"),
        (2, gpu(0, cuda=None, driver=None), FAIL, "build for CPUs"),
        (2, gpu(0, error="no CUDA-capable device"), FAIL, "driver"),
        (2, None, FAIL, "--gpus all"),
        (0, gpu(4), WARN, "--num-gpus=4"),
    ],
)
def test_gpus_seen_and_promised(promised, seen, state, fix):
    nodes = (node("a"), node("b", GPU=promised))
    found = facts({"b": machine(gpu=seen)}, nodes=nodes)
    one = only(found, NEEDS, "GPUs")
    assert (one.state, one.nodes) == (state, ("b",))
    assert fix in one.fix


def test_gpus_that_nobody_has():
    asks = Needs(verb="embed", config=EmbedConfig(**{"workers.gpus": 1}))
    (found,) = off(facts(), asks)
    assert (found.check, found.state) == ("GPUs", FAIL)
    assert "workers.gpus=0" in found.fix


def test_bfloat16_must_be_on_all_nodes_or_none():
    needs = Needs(verb="embed", config=EmbedConfig(), automatic="model.dtype")
    one = only(facts({"c": machine(bfloat16=[])}), needs, "bfloat16")
    assert (one.state, one.nodes) == (FAIL, ("c",))
    assert "model.dtype=float32" in one.fix
    labelled = EmbedConfig(**{"workers.labels": {"market": "spot"}})
    spot = (node("a", labels={"market": "spot"}), node("c"))
    found = facts({"c": machine(bfloat16=[])}, nodes=spot)
    assert only(found, Needs(verb="embed", config=labelled, automatic="model.dtype"), "bfloat16").state == OK
    none = {name: machine(bfloat16=[]) for name in "abc"}
    assert only(facts(none), needs, "bfloat16").state == OK
    assert only(facts(), needs, "bfloat16").state == OK


@pytest.mark.parametrize(
    ("kernels", "change", "states"),
    [
        ("auto", {}, {OK}),
        ("auto", {"compilers": []}, {OK, WARN}),
        ("native", {"compilers": []}, {OK, FAIL}),
        ("auto", {"compilers": [], "bfloat16": []}, {OK}),
        ("", {"compilers": []}, set()),
    ],
)
def test_a_compiler_where_the_kernel_is_built(kernels, change, states):
    needs = Needs(verb="embed", config=EmbedConfig(), kernels=kernels)
    rows = [each for each in check_job(facts({"b": machine(**change)}), needs) if each.check == "C compiler"]
    assert {row.state for row in rows} == states
    assert all(row.nodes == ("b",) and "gcc" in row.fix for row in rows if row.state != OK)


def test_what_training_needs():
    from raybert.config import PretrainConfig

    needs = Needs(verb="pretrain", config=PretrainConfig(), offload=True)
    assert not off(facts(), needs)
    bad = {
        "a": machine(versions={**machine()["versions"], "deepspeed": None}),
        "b": machine(builders=["g++"]),
    }
    found = {(each.check, *each.nodes): each for each in off(facts(bad), needs)}
    assert found.keys() == {("engine", "a"), ("C++ compiler", "b")}
    assert all(each.state == FAIL for each in found.values())
    with_gpus = facts({"b": machine(gpu=gpu(1, nccl=False))}, nodes=(node("b", GPU=1),))
    assert only(with_gpus, needs, "exchange").state == FAIL


GOOD = {"size": 10, "head": "x"}
FIRST = {"/in": {"path": "/in/a", "uri": "/in/a", "files": 1, "bytes": 10}}


@pytest.mark.parametrize(
    ("first", "answers", "state", "nodes", "said"),
    [
        (FIRST, {"": GOOD, "a": GOOD, "b": GOOD}, OK, ("a", "b"), "1 file(s)"),
        (FIRST, {"": GOOD, "b": {"error": "No such file"}}, FAIL, ("b",), "cannot be read here"),
        (FIRST, {"": GOOD, "b": {**GOOD, "size": 9}}, FAIL, ("b",), "another file here"),
        (FIRST, {"": {"error": "denied"}, "b": GOOD}, FAIL, (), "denied"),
        ({"/in": {"error": "nothing is there"}}, {}, FAIL, (), "nothing is there"),
    ],
)
def test_the_corpus_is_read(first, answers, state, nodes, said):
    needs = Needs(verb="embed", config=EmbedConfig(), reads=(("data.path", "/in"),))
    one = only(facts(first=first, files={"/in": answers}), needs, "read")
    assert (one.state, one.nodes) == (state, nodes)
    assert said in one.found
    assert bool(one.fix) == (state == FAIL)


def test_credentials_are_not_shown():
    secret = "s3://key:word@bucket/in"
    needs = Needs(verb="embed", config=EmbedConfig(), reads=(("data.path", secret),))
    one = only(facts(first={secret: {"error": "denied"}}), needs, "read")
    assert "word" not in one.found
    assert "s3://bucket/in" in one.found


WRITTEN = {"shared": True, "free": 1 << 40}


@pytest.mark.parametrize(
    ("path", "answer", "state", "said", "fix"),
    [
        ("/out", WRITTEN, OK, "the same for all", ""),
        ("/out", {**WRITTEN, "shared": False}, FAIL, "another folder", "shared file system"),
        ("s3://b/out", {"shared": False, "free": None}, FAIL, "another folder", "same credentials"),
        ("/out", {"error": "Read-only file system", "step": "write"}, FAIL, "(write)", "for writing"),
        ("/out", {"error": "Permission denied", "step": "write"}, FAIL, "Permission", "permissions"),
        ("/out", {**WRITTEN, "free": 1 << 20}, WARN, "0.00 GiB are free", "free space"),
        ("/out", {"error": "no answer within 60 s", "silent": True}, FAIL, "no answer", "output.path"),
    ],
)
def test_the_output_is_written(path, answer, state, said, fix):
    needs = Needs(verb="embed", config=EmbedConfig(), writes=path)
    one = only(facts(written={"b": answer}), needs, "write")
    assert (one.state, one.nodes) == (state, ("b",))
    assert said in one.found
    assert fix in one.fix


def test_the_driver_cannot_write():
    needs = Needs(verb="embed", config=EmbedConfig(), writes="/out")
    (one,) = off(
        facts(token={"error": "Not a directory"}, written={"b": {"shared": None, "free": None}}), needs
    )
    assert (one.state, one.nodes) == (FAIL, ())


MODEL = Model("model.name", "org/name", None, False, None)


@pytest.mark.parametrize(
    ("answer", "hub", "state", "said", "fix"),
    [
        ({"digest": "d"}, None, OK, "digest d", ""),
        ({"digest": "e"}, None, FAIL, "other files", "model.revision"),
        ({"error": "x", "hub": True, "offline": True}, None, FAIL, "HF_HUB_OFFLINE is set", "hf download org/name"),
        ({"error": "x", "hub": True, "offline": False}, None, WARN, "will fetch it", "doctor.hub=true"),
        ({"error": "x", "hub": True, "offline": False}, {}, OK, "the hub has it", ""),
        ({"error": "x", "hub": True, "offline": False}, {"error": "404"}, FAIL, "404", "hf download"),
        ({"error": "no folder", "hub": False, "offline": True}, None, FAIL, "no folder", "shared storage"),
    ],
)  # fmt: skip
def test_a_model_on_one_node(answer, hub, state, said, fix):
    needs = Needs(verb="embed", config=EmbedConfig(), models=(MODEL,))
    looks = {"a": {"digest": "d"}, "b": answer, "c": {"digest": "d"}}
    hubs = {} if hub is None else {"b": hub}
    rows = check_job(facts(looks={"model.name": looks}, hubs={"model.name": hubs}), needs)
    (one,) = (each for each in rows if each.check == "found" and "b" in each.nodes)
    assert one.state == state
    assert said in one.found
    assert fix in one.fix
    assert one.nodes == (("a", "b", "c") if answer == {"digest": "d"} else ("b",))


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ({"found": "384 dimensions", "note": "", "seconds": 1.0}, OK),
        ({"found": "384 dimensions", "note": "there is no C compiler", "seconds": 1.0}, OK),
        ({"error": "no tokenizer"}, FAIL),
    ],
)
def test_a_model_loads(answer, state):
    needs = Needs(verb="embed", config=EmbedConfig(), models=(MODEL,))
    assert only(facts(loads={"model.name": {"a": answer}}), needs, "loads").state == state


@pytest.mark.parametrize(("serving", "state"), [(False, FAIL), (True, WARN)])
def test_a_port_that_is_taken(serving, state):
    needs = Needs(verb="serve", config=ServeConfig(), binds=(("0.0.0.0", 8000),))
    taken = {"b": machine(taken=[["0.0.0.0", 8000, "Address already in use"]])}
    (one,) = [each for each in check_job(facts(taken, serving=serving), needs) if each.nodes == ("b",)]
    assert (one.check, one.state) == ("port", state)


def test_workers_that_find_no_room():
    (one,) = off(facts(pool="workers.count=99 does not fit"))
    assert (one.check, one.state) == ("room", FAIL)
    assert not off(facts(pool="", fits="2 workers"))
    grows = Needs(verb="embed", config=EmbedConfig(**{"workers.wait": 60}))
    (one,) = off(facts(pool="workers.count=99 does not fit"), grows)
    assert (one.check, one.state) == ("room", WARN)
