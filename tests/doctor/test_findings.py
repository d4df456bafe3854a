"""The table, and the same as JSON."""

import json

from raybert.doctor.findings import FAIL, OK, WARN, Finding, by_node, table, to_json

FOUND = [
    Finding("cluster", "nodes", OK, "3 alive", nodes=("a", "b", "c")),
    Finding("cluster", "clock", WARN, "9 s ahead " * 20, "synchronise it", ("c",)),
    Finding("storage", "write", FAIL, "denied", "let them write", ("a", "b")),
]


def test_every_finding_is_told_with_its_fix():
    lines = table(FOUND, 3).splitlines()
    assert lines[0].split() == ["state", "check", "nodes", "what", "was", "found"]
    assert lines.index("cluster") < lines.index("storage")
    assert any(line.startswith("ok     nodes  all 3") for line in lines)
    assert any(line.startswith("FAIL   write  a, b") for line in lines)
    assert "fix: let them write" in lines[-3]
    assert lines[-1] == "not fit: 3 findings, 1 failed, 1 warning(s)"
    assert max(map(len, lines)) <= 120


def test_without_a_failure_it_is_fit():
    assert table(FOUND[:2], 3).endswith("fit: 2 findings, 0 failed, 1 warning(s)")
    assert json.loads(to_json(FOUND[:2], "abc"))["fit"]


def test_json_has_the_same():
    held = json.loads(to_json(FOUND, ["a", "b", "c"]))
    assert held["fit"] is False
    assert held["nodes"] == ["a", "b", "c"]
    assert [Finding(**{**each, "nodes": tuple(each["nodes"])}) for each in held["findings"]] == FOUND


def test_nodes_of_which_the_same_is_said_share_a_line():
    said = {"a": (OK, "x", ""), "b": (FAIL, "y", "z"), "c": (OK, "x", ""), "d": None}
    rows = by_node("g", "c", said, said.get)
    assert [(row.state, row.nodes) for row in rows] == [(OK, ("a", "c")), (FAIL, ("b",))]
