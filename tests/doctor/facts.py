"""Answers of healthy nodes, to be changed by the tests."""

from typing import Any

from raybert.doctor.facts import Facts, Node

GIB = 1 << 30


def machine(**other: Any) -> dict[str, Any]:
    """What `raybert.doctor.machine.examine` says of a good machine."""
    versions = {"ray": "2.60.0", "torch": "2.13.0+cpu", "transformers": "5.23.0", "tokenizers": "0.23.3"}
    good = {
        "python": "3.11.7",
        "versions": {**versions, "pyarrow": "26.0.1", "numpy": "2.3.0", "deepspeed": "0.19.8"},
        "raybert": {"version": "0.1.0", "digest": "aaaaaaaa", "folder": "/app/raybert"},
        "cpus": 8.0,
        "memory": 64 * GIB,
        "shm": {"size": 32 * GIB, "free": 32 * GIB},
        "temp": {"path": "/tmp/ray", "size": 500 * GIB, "free": 200 * GIB},
        "files": 65536,
        "compilers": ["cc"],
        "builders": ["g++", "ninja"],
        "bfloat16": ["avx512_bf16"],
        "gpu": None,
        "listens": {},
        "taken": [],
    }
    return {**good, **other}


def node(name: str, labels: dict[str, str] | None = None, **resources: float) -> Node:
    """A node of Ray's with 8 CPUs."""
    held = {"CPU": 8.0, "memory": 40.0 * GIB, "object_store_memory": 18.0 * GIB, **resources}
    return Node(
        name=name,
        id=name,
        address=name,
        resources=held,
        labels=labels or {},
        head=name == "a",
        driver=name == "a",
    )


def gpu(count: int, **other: Any) -> dict[str, Any]:
    """What torch says of some GPUs."""
    one = {"name": "H100", "memory": 80 * GIB, "bfloat16": True}
    found = {"torch": "2.13.0+cu126", "cuda": "12.6", "nccl": True, "driver": "550.54", "gpus": [one] * count}
    return {**found, **other}


def facts(machines: dict[str, dict[str, Any]] | None = None, **other: Any) -> Facts:
    """Three healthy nodes, a to c; `machines` are those that differ."""
    nodes = tuple(node(name) for name in "abc")
    every = {each.name: machine() for each in nodes} | (machines or {})
    clocks = {name: {"ahead": 0.01, "within": 0.02} for name in every}
    return Facts(**{"nodes": nodes, "driver": machine(), "machines": every, "clocks": clocks, **other})
