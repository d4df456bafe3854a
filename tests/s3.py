"""A real S3-compatible server, moto's, on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server(*buckets: str) -> Iterator[str]:
    """Its URL. It holds these buckets, empty; AWS's variables point at it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**_ENVIRONMENT, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        make_buckets(*buckets)
        try:
            yield url
        finally:
            server.stop()


def make_buckets(*names: str) -> None:
    """Empty ones, on the server that AWS's variables point at, which holds no others afterwards.

    moto keeps its buckets in the process: a server finds there what others of this process were given.
    """
    import boto3
    import httpx

    httpx.post(f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset").raise_for_status()
    client = boto3.client("s3")
    for name in names:
        client.create_bucket(Bucket=name)
