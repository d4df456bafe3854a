"""One cluster of four hosts for all tests that need real nodes: a head without encoders, and three to be lost."""

from collections.abc import Iterator

import pytest

from tests.cluster.hosts import Hosts, missing


@pytest.fixture(scope="session")
def _four_hosts() -> Iterator[Hosts]:
    if why := missing():
        pytest.skip(f"hosts of their own: {why}")
    with Hosts(4) as hosts:
        yield hosts


@pytest.fixture
def cluster(_four_hosts: Hosts) -> Hosts:
    """A head with one CPU on the first host, a node of two CPUs on each of the others; what was lost is started again."""
    _four_hosts.bring_up()
    return _four_hosts
