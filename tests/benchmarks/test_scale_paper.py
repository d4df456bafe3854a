"""The calculator against cases worked by hand, and SCALE.md against the calculator."""

import re
import shlex
from pathlib import Path

import pytest

from tests.benchmarks import scale_paper, scale_requests

ROOT = Path(__file__).parents[2]
SCALE = (ROOT / "cluster/SCALE.md").read_text()


def test_embedding_by_hand():
    asked = scale_paper.EMBED | {
        **{
            "documents": 1e6,
            "tokens_per_document": 36.0,
            "bytes_per_document": 100.0,
            "rows_per_shard": 1000.0,
        },
        **{
            "tokens_per_second": 1000.0,
            "price": 2.0,
            "hours": 5.0,
            "dimension": 256.0,
            "bytes_per_value": 2.0,
        },
        **{"driver_ms_per_shard": 18.0, "driver_kb_per_shard": 5.0},
        **{"writes_per_shard": 10.0, "reads_per_shard": 5.0, "writes_price": 0.005, "reads_price": 0.0004},
        **{"writes_a_second": 100.0},
    }
    found = scale_paper.embed(asked)
    assert found == pytest.approx(
        {
            "tokens": 36e6,
            "node-hours": 10,
            "nodes": 2,
            "hours": 5,
            "price of the nodes, $": 20,
            "shards": 1000,
            "files written": 2000,
            "MB a file of vectors": 0.512,
            "TB read": 1e-4,
            "TB written": 5.12e-4,
            "MB/s read, all nodes": 100 / 18000,
            "MB/s written, all nodes": 512 / 18000,
            "MB/s written, a node": 256 / 18000,
            "shards/s": 1000 / 18000,
            "driver busy, share of a core": 18 / 18000,
            "driver's memory for shards, GB": 0.005,
            "PUT, POST, LIST requests": 10_000,
            "of them a second": 10_000 / 18000,
            "of what a prefix takes": 10_000 / 18000 / 100,
            "GET, HEAD requests": 5000,
            "price of the requests, $": 0.05 + 0.002,
            "nodes at which the driver is full": 2 * 18000 / 18,
        }
    )


def test_pretraining_by_hand():
    asked = scale_paper.PRETRAIN | {
        **{"tokens": 36e6, "tokens_per_second": 1000.0, "price": 3.0, "hours": 5.0, "efficiency": 0.8},
        **{"parameters": 1e6, "global_batch_tokens": 36e3, "bytes_per_token": 2.0, "workers_per_node": 4.0},
        **{"stream_tokens_per_second": 8000.0, "bytes_per_parameter": 14.0, "checkpoint_minutes": 10.0},
        **{"tokens_per_instance": 100.0, "instances_per_shard": 1000.0},
    }
    found = scale_paper.pretrain(asked)  # 10 hours of one node, 12.5 of three at 80 %
    seconds = 12.5 / 3 * 3600
    assert found == pytest.approx(
        {
            "node-hours": 12.5,
            "nodes": 3,
            "hours": 12.5 / 3,
            "price of the nodes, $": 37.5,
            "tokens/s, all nodes": 2400,
            "of what a worker's stream deals": 0.3,
            "hours below which the stream is full": 1.25,
            "steps": 1000,
            "seconds a step": seconds / 1000,
            "GB exchanged a step, each node": 2 * 2 / 3 * 2e6 / 1e9,
            "Gbit/s, each node, to hide it in a step": 2 * 2 / 3 * 2e6 * 8 / (seconds / 1000) / 1e9,
            "GB a checkpoint": 0.014,
            "checkpoints": 25,
            "token shards": 360,
            "GB of token shards": 0.072,
            "TB read, each worker all of them": 0.072 * 12 / 1000,
            "MB/s read, all nodes": 0.072 * 12 * 1000 / seconds,
        }
    )


def test_one_node_loses_nothing_to_others():
    asked = scale_paper.PRETRAIN | {"tokens": 36e6, "tokens_per_second": 1000.0, "price": 1.0, "hours": 10.0}
    found = scale_paper.pretrain(asked)
    assert (found["nodes"], found["node-hours"], found["GB exchanged a step, each node"]) == (1, 10, 0)


@pytest.mark.parametrize(
    "words",
    [[], ["sort"], ["embed"], ["embed", "price=1"], ["embed", "tokens_per_second=1", "price=1", "x=1"]],
)
def test_rates_and_prices_are_asked_for(words, capsys):
    assert scale_paper.main(words) == 2
    assert capsys.readouterr().out


COMMANDS = re.findall(r"^python (tests/benchmarks/\S+\.py) ?(.*)$", SCALE, re.MULTILINE)


def test_scale_md_is_short_and_its_scripts_exist():
    assert len(SCALE.splitlines()) <= 120
    assert {script for script, _ in COMMANDS} == {
        f"tests/benchmarks/scale{name}.py" for name in ("", "_paper", "_requests", "_stream")
    }
    assert all((ROOT / script).is_file() for script, _ in COMMANDS)


PAPERS = [shlex.split(words) for script, words in COMMANDS if script.endswith("_paper.py")]


def test_its_tables_are_what_its_commands_print(capsys):
    """Each row of a table with a column a command."""
    tables = re.findall(
        r"((?:^python tests/benchmarks/scale_paper.*\n)+)```\n\n((?:^\|.*\n)+)", SCALE, re.MULTILINE
    )
    assert len(tables) == 2
    for commands, table in tables:
        printed = []
        for line in commands.splitlines():
            assert scale_paper.main(shlex.split(line)[2:]) == 0
            printed.append(dict(re.findall(r"^\| (.*?) \| (.*?) \|$", capsys.readouterr().out, re.MULTILINE)))
        for row in table.splitlines()[2:]:
            key, *values = (cell.strip() for cell in row.strip("|").split("|"))
            assert values == [each[key] for each in printed], key


def test_defaults_that_were_measured_are_those_of_scale_md():
    for key, value in scale_paper.DRIVER.items():
        assert re.search(rf"\| `{key}` \| {value:g} \|", SCALE), key
    for key in ("bytes_per_token", "stream_tokens_per_second"):
        assert re.search(rf"\| `{key}` \| {scale_paper.PRETRAIN[key]:,.10g} \|", SCALE), key


def test_requests_of_a_shard_are_counted():
    from collections import Counter

    with scale_requests.counted_server() as counts:
        phases = scale_requests.run(counts, shards=3, rows=8, dimension=4)
    assert phases.keys() == {"plan", "read", "commit", "finish"}
    commit: Counter[str] = phases["commit"]
    assert commit["PUT"] >= 3 * 2  # the vectors and the record
    writes = (commit["PUT"] + commit["POST"] + commit["LIST"]) / 3
    assert writes == scale_paper.DRIVER["writes_per_shard"]
