"""Who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "raybert"
FILES = sorted(ROOT.rglob("*.py"))
JOBS = {
    "embed",
    "prepare",
    "vocabulary",
    "embed_dataset",
    "search",
    "verify",
    "evaluate",
    "doctor",
    "predict",
    "probe",
    "finetune",
}


def imports(file: Path, *, top_level: bool = False) -> set[str]:
    """Dotted names of all modules that a file imports."""
    tree = ast.parse(file.read_text())
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def place(file: Path) -> str:
    """`encoder` for raybert/encoder/x.py, `embed` for raybert/embed.py."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def uses(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(package + ".")}


@pytest.mark.parametrize("file", [f for f in FILES if place(f) in ("encoder", "config")], ids=str)
def test_encoder_and_config_stand_alone(file):
    own = f"raybert.{place(file)}"
    assert all(name.startswith(own) for name in uses(imports(file), "raybert") - {"raybert"})
    assert not uses(imports(file), "ray")
    assert not uses(imports(file), "pyarrow")


@pytest.mark.parametrize("file", [f for f in FILES if place(f) == "corpus"], ids=str)
def test_corpus_knows_settings_only_and_never_torch(file):
    names = imports(file)
    assert all(n.startswith(("raybert.config", "raybert.corpus")) for n in uses(names, "raybert"))
    assert not uses(names, "torch")
    assert not uses(names, "transformers")


@pytest.mark.parametrize("file", [f for f in FILES if place(f) == "pretrain"], ids=str)
def test_training_data_is_made_without_torch_and_ray(file):
    names = imports(file)
    allowed = ("raybert.config", "raybert.corpus", "raybert.encoder", "raybert.pretrain")
    assert all(n.startswith(allowed) for n in uses(names, "raybert"))
    assert not uses(names, "torch")
    assert not uses(names, "ray")


TASKS = [f for f in FILES if place(f) == "tasks"]


@pytest.mark.parametrize("file", [f for f in TASKS if not f.stem.endswith("_model")], ids=str)
def test_examples_and_scores_are_made_without_torch_and_ray(file):
    names = imports(file)
    allowed = ("raybert.config", "raybert.corpus", "raybert.encoder", "raybert.evaluate", "raybert.tasks")
    assert all(n.startswith(allowed) for n in uses(names, "raybert"))
    assert not any(uses(names, name) for name in ("torch", "ray", "transformers"))


@pytest.mark.parametrize("file", [f for f in TASKS if f.stem.endswith("_model")], ids=str)
def test_models_of_tasks_know_no_ray(file):
    names = imports(file)
    allowed = ("raybert.config", "raybert.encoder", "raybert.tasks", "raybert.train")
    assert all(n.startswith(allowed) for n in uses(names, "raybert"))
    assert not any(uses(names, name) for name in ("ray", "deepspeed"))


PURE = {
    "packed",
    "packed_decoder",
    "grouped",
    "dropout",
    "cross_entropy",
    "forward",
    "pretraining_model",
    "pretraining_objective",
    "task_objective",
    "ranking_objective",
    "grad_cache",
    "step",
    "optimizers",
}
PURE |= {"lamb", "schedules", "spikes", "progress", "freezing", "layer_decay", "regularizers", "adversarial"}


@pytest.mark.parametrize("file", [f for f in FILES if place(f) == "train" and f.stem in PURE], ids=str)
def test_the_step_needs_neither_ray_nor_deepspeed(file):
    names = imports(file)
    assert not uses(names, "ray")
    assert not uses(names, "deepspeed")
    assert all(n.startswith(("raybert.train", "raybert.encoder")) for n in uses(names, "raybert"))


@pytest.mark.parametrize("file", [f for f in FILES if place(f) in JOBS], ids=str)
def test_jobs_do_not_import_one_another(file):
    others = {f"raybert.{job}" for job in JOBS - {place(file)}}
    assert not {name for name in imports(file) if name in others}


@pytest.mark.parametrize("file", [f for f in FILES if place(f) in JOBS], ids=str)
def test_drivers_do_not_import_torch_at_the_top(file):
    assert not uses(imports(file, top_level=True), "torch")
    assert not uses(imports(file, top_level=True), "raybert.encoder.encoder")


DOCTOR = [f for f in FILES if place(f) == "doctor"]


@pytest.mark.parametrize("file", [f for f in DOCTOR if f.stem not in ("gather", "command")], ids=str)
def test_the_doctor_asks_by_ray_in_one_place(file):
    assert not uses(imports(file), "ray")


def test_the_doctor_s_probe_runs_without_raybert():
    assert not uses(imports(ROOT / "doctor/machine.py"), "raybert")


@pytest.mark.parametrize("file", [f for f in DOCTOR if f.stem.endswith("_checks")], ids=str)
def test_verdicts_are_functions_of_facts(file):
    corpus = tuple(f"raybert.corpus.{name}" for name in ("filesystems", "paths", "pool"))
    assert all(name.startswith(("raybert.doctor", *corpus)) for name in uses(imports(file), "raybert"))
