"""What was found: one line each, and the table of them."""

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

OK, WARN, FAIL = "ok", "warn", "fail"
_WIDTH = 118


@dataclass(frozen=True)
class Finding:
    """A check: on which nodes (empty: the cluster as a whole), its state, what was found, and what to do about it."""

    group: str
    check: str
    state: str
    found: str
    fix: str = ""
    nodes: tuple[str, ...] = ()


def by_node(
    group: str,
    check: str,
    answers: Mapping[str, object],
    judge: Callable[[str], tuple[str, str, str] | None],
) -> list[Finding]:
    """A finding for every (state, found, fix) that `judge` gives, with the nodes for which it does; None is left out."""
    same: dict[tuple[str, str, str], list[str]] = {}
    for node in answers:
        if (said := judge(node)) is not None:
            same.setdefault(said, []).append(node)
    return [
        Finding(group, check, state, found, fix, tuple(nodes)) for (state, found, fix), nodes in same.items()
    ]


def table(findings: Sequence[Finding], nodes: int) -> str:
    """Plain text: state, check, nodes, what was found, and below it the fix."""
    heads = ("state", "check", "nodes", "what was found")
    rows = [(f.state.upper() if f.state == FAIL else f.state, f.check, _nodes(f, nodes)) for f in findings]
    widths = [max(len(cell) for cell in column) for column in zip(heads[:3], *rows, strict=True)]
    widths[2] = min(widths[2], 30)
    lines, group = [_row(heads, widths)], None
    for finding, row in zip(findings, rows, strict=True):
        if finding.group != group:
            group = finding.group
            lines += ["", group]
        lines += _lines(finding, row, widths)
    return "\n".join([*lines, "", summary(findings)])


def summary(findings: Iterable[Finding]) -> str:
    """How many of which state."""
    states = [finding.state for finding in findings]
    failed, warned = states.count(FAIL), states.count(WARN)
    verdict = "not fit" if failed else "fit"
    return f"{verdict}: {len(states)} findings, {failed} failed, {warned} warning(s)"


def to_json(findings: Sequence[Finding], nodes: Sequence[str]) -> str:
    """The same for programs: {"fit", "nodes", "findings": [{group, check, state, nodes, found, fix}]}."""
    fit = not any(finding.state == FAIL for finding in findings)
    every = [{**asdict(finding), "nodes": list(finding.nodes)} for finding in findings]
    return json.dumps({"fit": fit, "nodes": list(nodes), "findings": every}, indent=1)


def _lines(finding: Finding, row: Sequence[str], widths: Sequence[int]) -> list[str]:
    indent = sum(widths) + 2 * len(widths)
    room = max(40, _WIDTH - indent)
    text = textwrap.wrap(finding.found, room) or [""]
    if finding.fix:
        text += textwrap.wrap(f"fix: {finding.fix}", room, subsequent_indent="     ")
    names = textwrap.wrap(row[2], widths[2], break_long_words=False) or [""]
    count = max(len(text), len(names))
    cells = [[row[0], row[1], "", ""], *(["", "", "", ""] for _ in range(count - 1))]
    for i, line in enumerate(cells):
        line[2] = names[i] if i < len(names) else ""
        line[3] = text[i] if i < len(text) else ""
    return [_row(line, widths) for line in cells]


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [f"{cell:{width}}" for cell, width in zip(cells, widths, strict=False)]
    return "  ".join([*padded, cells[-1]]).rstrip()


def _nodes(finding: Finding, nodes: int) -> str:
    if not finding.nodes:
        return "-"
    if len(finding.nodes) == nodes:
        return f"all {nodes}"
    shown = ", ".join(finding.nodes[:4])
    return shown + (f" and {len(finding.nodes) - 4} more" if len(finding.nodes) > 4 else "")
