"""Shared by all tests: no network, one Ray for the session, tiny models built on the spot."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)
# threads of several processes that wait for each other on the same cores take many times as long as one thread each
os.environ.setdefault("OMP_NUM_THREADS", "1")

# where nobody looks on, the same examples every time
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

SHARED = Path(__file__).parents[2] / "shared/data"  # real data beside the checkout; tests skip without

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "reads",
    "gzip",
    "files",
    "and",
    "writes",
    "vectors",
    "to",
    "parquet",
    "on",
    "many",
    "nodes",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share the session's Ray run together, before those that need the machine for their own."""
    items.sort(key=lambda item: "tests/cluster/" in item.nodeid)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One private Ray for all tests that need any."""
    import ray

    from raybert.corpus.session import ray_session

    if ray.is_initialized():
        yield
        return
    with ray_session():
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT, 2 layers, 32 wide, as a sentence-transformers folder."""
    from tests.encoder.tiny import tiny_model

    return str(tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct random texts of 3 to 40 words."""
    rng = random.Random(seed)
    return [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randint(3, 40))) for i in range(count)]


def raybert(*arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does; with `check`, a failure shows what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "raybert", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=Path(__file__).parent.parent,
    )
    if check and done.returncode:
        pytest.fail(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done
