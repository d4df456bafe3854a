"""Requests to an object store that a shard of `raybert embed` costs, counted by a server of that kind on this machine.

    python tests/benchmarks/scale_requests.py [shards=100] [rows=4096] [dimension=384]

`shards` shards go the way of a run (planned, read, committed, added up at the end) through pyarrow to moto's S3, with
vectors of zeros in place of a model's. Prints requests by phase and kind, per shard and in all.
"""

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KINDS = ("PUT", "POST", "LIST", "GET", "HEAD", "DELETE")
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def main(argv: list[str]) -> int:
    """Count and print."""
    asked = {"shards": 100, "rows": 4096, "dimension": 384}
    asked |= {key: int(value) for key, value in (word.split("=") for word in argv)}
    with counted_server() as counts:
        phases = run(counts, **asked)
    print(f"{'phase':8}" + "".join(f"{kind:>9}" for kind in KINDS) + "    per shard")
    for phase, found in phases.items():
        cells = "".join(f"{found[kind] / asked['shards']:9.2f}" for kind in KINDS)
        print(f"{phase:8}{cells}    {sum(found.values()) / asked['shards']:9.2f}")
    return 0


def run(counts: Counter[str], shards: int, rows: int, dimension: int) -> dict[str, Counter[str]]:
    """Requests of each phase, all shards together."""
    from raybert.config import EmbedConfig
    from raybert.corpus.filesystems import resolve
    from raybert.corpus.ledger import Ledger
    from raybert.corpus.plan import make_plan
    from raybert.corpus.readers import read, spans
    from raybert.corpus.vectors import embedding_array, schema, to_parquet
    from raybert.embed import deciding_settings

    fs, root = resolve("s3://counted/in/a.parquet")
    table = pa.table({"text": [f"text {i}" for i in range(shards * rows)]})
    pq.write_table(table, root, filesystem=fs, row_group_size=rows)
    paths = {"data.path": "s3://counted/in", "output.path": "s3://counted/out"}
    config = EmbedConfig(**paths, **{"model.name": "null", "output.rows_per_shard": rows})
    ledger = Ledger("s3://counted/out", owner="count")
    columns_of = {"kept": [], "types": {}, "carried": {}}
    ledger.create_job(
        {"requested": deciding_settings(config), "model": {"name": "null", "revision": None}, **columns_of}
    )
    found: dict[str, Counter[str]] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        before = counts.copy()
        yield
        found[name] = counts - before

    with phase("plan"):
        plan = make_plan(config.data, config.output, ledger, ledger.job())
        ledger.extend(list(plan.added))
    kind = schema({}, pa.string(), {"dimension": dimension, "stored_dtype": "float32"}, chunked=False)
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "id": pa.array([f"in/a.parquet:{i}" for i in range(rows)], kind.field("id").type),
        "num_tokens": pa.array([50] * rows, kind.field("num_tokens").type),
        "truncated": pa.array([False] * rows, kind.field("truncated").type),
        "embedding": embedding_array(
            rng.standard_normal((rows, dimension), np.float32), kind.field("embedding").type
        ),
    }
    data = to_parquet(pa.table([columns[name] for name in kind.names], schema=kind))
    print(f"{data.size / 1e6:.1f} MB a file of vectors", flush=True)
    made = dict.fromkeys(("rows", "embedded", "vectors", "tokens"), rows) | {"rejected": 0, "truncated": 0}
    (source,) = plan.sources
    with phase("read"):
        for span in spans(plan.files[source.uri], source.shards, list(source.shards)):
            types = {"text": pa.string()}
            for _ in read(
                plan.files[source.uri], span, ["text"], types=types, text_columns=["text"], max_chars=99
            ):
                pass
    with phase("commit"):
        for name in plan.shards():
            ledger.find(name)  # as a worker asks before it begins
            ledger.commit(name, data, None, made)
    with phase("finish"):
        done = ledger.done()
        ledger.commits(done)
    assert len(done) == shards
    return found


@contextmanager
def counted_server() -> Iterator[Counter[str]]:
    """moto's S3 with one bucket, to which AWS variables point; counts requests by kind."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    counts: Counter[str] = Counter()
    app = DomainDispatcherApplication(create_backend_app)

    def counting(environ: dict[str, Any], start_response: Any) -> Any:
        method, query = environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
        counts["LIST" if method == "GET" and "list-type" in query else method] += 1
        return app(environ, start_response)

    server = make_server("127.0.0.1", 0, counting, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = dict(os.environ)
    os.environ.update(_ENVIRONMENT, AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.server_port}")
    import boto3

    boto3.client("s3").create_bucket(Bucket="counted")
    try:
        yield counts
    finally:
        server.shutdown()
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    sys.exit(main(sys.argv[1:]))
