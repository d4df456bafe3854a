"""What a very large job takes on paper: nodes, time, money, load on network and object store, shards and files.

    python tests/benchmarks/scale_paper.py embed tokens_per_second=N price=N [key=value ...]
    python tests/benchmarks/scale_paper.py pretrain tokens_per_second=N price=N [key=value ...]

`tokens_per_second` and `price` (of an hour) are those of one node and have no default: measure the one
(`raybert embed ... dry_run=true`, tests/benchmarks/encode.py, encode_gpu.py, pretrain.py), look the other up. All other keys
and their defaults are in EMBED and PRETRAIN; where a default was measured, the command stands beside it.
"""

import sys
from collections.abc import Mapping

# of the driver, from tests/benchmarks/scale.py; requests a shard from tests/benchmarks/scale_requests.py
DRIVER = {
    "driver_ms_per_shard": 9.5,  # CPU time
    "driver_kb_per_shard": 4.9,  # memory: (driver_mb_after - driver_mb_before) / run_shards
    "writes_per_shard": 10.0,  # PUT, POST and LIST of `commit`
    "reads_per_shard": 9.0,  # GET and HEAD of `read`, `commit` and `finish`
}
# assumptions: list prices of S3 in us-east-1, dollars for 1,000 requests; what a prefix takes a second
STORE = {"writes_price": 0.005, "reads_price": 0.0004, "writes_a_second": 3500.0}
EMBED = {
    "documents": 1e9,
    "tokens_per_document": 200.0,  # assumption
    "bytes_per_document": 500.0,  # assumption: compressed in Parquet
    "hours": 24.0,  # the time that the job may take
    "rows_per_shard": 4096.0,
    "dimension": 384.0,
    "bytes_per_value": 4.0,
    **DRIVER,
    **STORE,
}
PRETRAIN = {
    "tokens": 1e11,
    "hours": 168.0,
    "parameters": 110e6,  # BERT-base
    "global_batch_tokens": 1e6,
    "tokens_per_instance": 128.0,
    "bytes_per_token": 1.52,  # of a token shard, and
    "stream_tokens_per_second": 2.5e6,  # of one worker, which reads all shards: tests/benchmarks/scale_stream.py
    "workers_per_node": 1.0,
    "instances_per_shard": 32_768.0,  # assumption: 4,096 documents of 8 instances
    "bytes_per_parameter": 14.0,  # of a checkpoint: bfloat16 weights, and weights and two moments of Adam in float32
    "checkpoint_minutes": 10.0,
    "efficiency": 0.9,  # assumption: of several nodes against one
}


def main(argv: list[str]) -> int:
    """Print the table of one job."""
    kinds = {"embed": (EMBED, embed), "pretrain": (PRETRAIN, pretrain)}
    if not argv or argv[0] not in kinds:
        print(__doc__)
        return 2
    defaults, reckon = kinds[argv[0]]
    known = {**defaults, "tokens_per_second": 0.0, "price": 0.0}
    asked = dict(known)
    for word in argv[1:]:
        key, found, value = word.partition("=")
        if not found or key not in known:
            print(f"{word}: unknown; known are {', '.join(known)}")
            return 2
        asked[key] = float(value)
    if not (asked["tokens_per_second"] and asked["price"]):
        print("give tokens_per_second=N and price=N, of one node")
        return 2
    print("| figure | value |\n| --- | --- |")
    for key, value in reckon(asked).items():
        print(f"| {key} | {shown(value)} |")
    return 0


def embed(a: Mapping[str, float]) -> dict[str, float]:
    """Figures of embedding: one shard becomes one file of vectors and one record."""
    tokens = a["documents"] * a["tokens_per_document"]
    node_hours = tokens / a["tokens_per_second"] / 3600
    nodes = -(-node_hours // a["hours"])
    seconds = node_hours / nodes * 3600
    shards = -(-a["documents"] // a["rows_per_shard"])
    made = a["documents"] * a["dimension"] * a["bytes_per_value"]
    read = a["documents"] * a["bytes_per_document"]
    writes, reads = shards * a["writes_per_shard"], shards * a["reads_per_shard"]
    busy = shards * a["driver_ms_per_shard"] / 1000
    return {
        "tokens": tokens,
        "node-hours": node_hours,
        "nodes": nodes,
        "hours": seconds / 3600,
        "price of the nodes, $": node_hours * a["price"],
        "shards": shards,
        "files written": 2 * shards,
        "MB a file of vectors": made / shards / 1e6,
        "TB read": read / 1e12,
        "TB written": made / 1e12,
        "MB/s read, all nodes": read / seconds / 1e6,
        "MB/s written, all nodes": made / seconds / 1e6,
        "MB/s written, a node": made / seconds / nodes / 1e6,
        "shards/s": shards / seconds,
        "driver busy, share of a core": busy / seconds,
        "driver's memory for shards, GB": shards * a["driver_kb_per_shard"] / 1e6,
        "PUT, POST, LIST requests": writes,
        "of them a second": writes / seconds,
        "of what a prefix takes": writes / seconds / a["writes_a_second"],
        "GET, HEAD requests": reads,
        "price of the requests, $": (writes * a["writes_price"] + reads * a["reads_price"]) / 1000,
        "nodes at which the driver is full": nodes * seconds / busy,
    }


def pretrain(a: Mapping[str, float]) -> dict[str, float]:
    """Figures of pretraining with the gradients of every step summed over the nodes (a ring; 2 bytes a parameter are assumed)."""
    alone = a["tokens"] / a["tokens_per_second"] / 3600
    node_hours = alone if alone <= a["hours"] else alone / a["efficiency"]
    nodes = -(-node_hours // a["hours"])
    seconds = node_hours / nodes * 3600
    steps = a["tokens"] / a["global_batch_tokens"]
    exchanged = 2 * (nodes - 1) / nodes * a["parameters"] * 2
    shards = -(-a["tokens"] // (a["tokens_per_instance"] * a["instances_per_shard"]))
    read = a["tokens"] * a["bytes_per_token"] * nodes * a["workers_per_node"]
    rate = a["tokens"] / seconds
    return {
        "node-hours": node_hours,
        "nodes": nodes,
        "hours": seconds / 3600,
        "price of the nodes, $": node_hours * a["price"],
        "tokens/s, all nodes": rate,
        "of what a worker's stream deals": rate / a["stream_tokens_per_second"],
        "hours below which the stream is full": a["tokens"] / a["stream_tokens_per_second"] / 3600,
        "steps": steps,
        "seconds a step": seconds / steps,
        "GB exchanged a step, each node": exchanged / 1e9,
        "Gbit/s, each node, to hide it in a step": exchanged * 8 / (seconds / steps) / 1e9,
        "GB a checkpoint": a["parameters"] * a["bytes_per_parameter"] / 1e9,
        "checkpoints": seconds / 60 / a["checkpoint_minutes"],
        "token shards": shards,
        "GB of token shards": a["tokens"] * a["bytes_per_token"] / 1e9,
        "TB read, each worker all of them": read / 1e12,
        "MB/s read, all nodes": read / seconds / 1e6,
    }


def shown(value: float) -> str:
    """Whole numbers whole, others to three figures."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
