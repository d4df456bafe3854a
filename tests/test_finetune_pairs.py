"""The whole way on a real Ray for tasks of two texts: a table in, a folder out that sentence-transformers and embed read."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from raybert.encoder.encoder import Encoder
from raybert.evaluate.evaluate import evaluate
from raybert.finetune import finetune
from raybert.predict import predict
from tests.encoder.tiny import tiny_model
from tests.train.task_tables import rows, write

PLACES = ("river", "city", "world", "music", "people", "machine", "data", "water", "word", "language")
FILL = ("the", "of", "many", "little", "long", "other", "some", "very")


def pairs(n: int, seed: int) -> list[dict]:
    """Two texts about places, about beings, or about one of each."""
    rng, texts = np.random.default_rng(seed), {"place": [], "being": []}
    for row in rows(8 * n, seed):
        texts[row["label"]].append(row["text"])
    found = []
    for _ in range(n):
        one = rng.choice(["place", "being"])
        other = rng.choice(["place", "being"])
        found.append(
            {
                "sentence1": texts[one].pop(),
                "sentence2": texts[other].pop(),
                "score": 5.0 if one == other else 1.0,
            }
        )
    return found


def questions(n: int, seed: int) -> list[dict]:
    """A query names two things in one order, its document in the other; a hard negative one of them only."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        one, other, third = rng.choice(PLACES, 3, replace=False)
        fill = rng.choice(FILL, 4)
        found.append(
            {
                "query": f"{fill[0]} {one} {fill[1]} {other}",
                "positive": f"{other} {fill[2]} {one} {fill[3]}",
                "wrong": [f"{other} {fill[2]} {third} {fill[3]}"],
            }
        )
    return found


def settings(folder, task: str, **changes) -> dict:
    train = {"steps": 30, "lr": 4e-3, "log_every": 10, "warmup": 3, "precision": "float32", "batch_size": 32}
    return {
        "task.name": task,
        "model.name": str(folder / "model"),
        "data.path": str(folder / "train.parquet"),
        "data.validation": str(folder / "validation.parquet"),
        "output.path": str(folder / "out"),
        "batch_tokens": 256,
        "track": [],
        "workers.count": 2,
        **{f"train.{key}": value for key, value in train.items()},
        "train.evaluate.every": 15,
        **changes,
    }


def cosines(encoder, rows: list[dict], first: str, second: str, **prompts) -> np.ndarray:
    one, other = (
        encoder.encode([row[name] for row in rows], normalize=True, prompt=prompts.get(name, ""))
        for name in (first, second)
    )
    return (one * other).sum(1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_similarity(tmp_path, ray_local):
    tiny_model(tmp_path / "model")
    write(tmp_path / "train.parquet", [*pairs(300, 0), {"sentence1": "a", "sentence2": "b", "score": None}])
    held = pairs(80, 1)
    write(tmp_path / "validation.parquet", held)
    before = cosines(Encoder.load(tmp_path / "model", dtype="float32"), held, "sentence1", "sentence2")
    report = finetune(settings(tmp_path, "similarity"))
    assert report.plan["rows"]["train"]["rejected"] == {"score is null": 1}
    assert (report.plan["settings"]["low"], report.plan["settings"]["high"]) == (1.0, 5.0)
    made = tmp_path / "out" / "model"
    after = cosines(Encoder.load(made, dtype="float32"), held, "sentence1", "sentence2")
    alike = np.array([row["score"] == 5 for row in held])
    assert after[alike].mean() - after[~alike].mean() > 2 * (before[alike].mean() - before[~alike].mean())
    pearson = np.corrcoef(after, alike)[0, 1]
    assert report.figures["held_out_pearson"] == pytest.approx(pearson, abs=1e-4)
    assert json.loads((made / "modules.json").read_text())[1]["type"].endswith("Pooling")
    assert (made / "1_Pooling" / "config.json").is_file()
    assert "fine-tuned for similarity" in (made / "README.md").read_text()
    given = {"data.path": str(tmp_path / "validation.parquet"), "workers.count": 1, "model.dtype": "float32"}
    found = evaluate(
        {
            "model.name": str(made),
            "model.before": str(tmp_path / "model"),
            "output.path": str(tmp_path / "report"),
            **given,
        }
    )
    assert found.after.metrics["spearman"] == pytest.approx(report.figures["held_out_spearman"], abs=1e-4)
    assert found.before.metrics["pearson"] == pytest.approx(np.corrcoef(before, alike)[0, 1], abs=1e-4)
    predict({"model.name": str(made), "output.path": str(tmp_path / "scores"), **given})
    scores = pq.read_table(tmp_path / "scores" / "data")["score"].to_numpy()
    np.testing.assert_allclose(scores, after, atol=1e-5)


@pytest.mark.slow
def test_retrieval(tmp_path, ray_local):
    tiny_model(tmp_path / "model", st=False)
    write(tmp_path / "train.parquet", questions(400, 0))
    held = questions(60, 1)
    write(tmp_path / "validation.parquet", held)
    changes = {
        "task.negatives": "wrong",
        "task.dimensions": [32, 8],
        "task.query_prompt": "what ",
        "adapter.name": "lora",
        "adapter.rank": 8,
        "train.lr": 1e-2,
        "train.zero": 2,
    }
    report = finetune(settings(tmp_path, "retrieval", **changes))
    made = tmp_path / "out" / "model"
    found = report.figures
    assert found["held_out_accuracy_at_1"] > 0.12  # by chance 1 in 60
    assert found["held_out_ndcg_at_10"] >= found["held_out_ndcg_at_10_dim8"] > 0
    encoder = Encoder.load(made, dtype="float32")
    assert encoder.prompts == {"query": "what "}
    queries = encoder.encode([row["query"] for row in held], prompt_name="query")
    texts = sorted({row["positive"] for row in held})
    best = (queries @ encoder.encode(texts).T).argmax(1)
    right: dict[str, set[str]] = {}
    for row in held:
        right.setdefault(row["query"], set()).add(row["positive"])
    hits = {row["query"]: texts[i] in right[row["query"]] for row, i in zip(held, best, strict=True)}
    assert np.mean([*hits.values()]) == pytest.approx(found["held_out_accuracy_at_1"], abs=0.02)
    from raybert.embed import embed

    embed(
        {
            "model.name": str(made),
            "data.path": str(tmp_path / "validation.parquet"),
            "data.text": "positive",
            "output.path": str(tmp_path / "vectors"),
            "model.dimensions": 8,
            "workers.count": 1,
        }
    )
    vectors = pq.read_table(tmp_path / "vectors" / "data")["embedding"].to_pylist()
    cut = encoder.encode([row["positive"] for row in held], dimensions=8)
    assert len(vectors) == 60
    np.testing.assert_allclose(np.array(vectors), cut, atol=0.05)


@pytest.mark.slow
def test_selection(tmp_path, ray_local):
    tiny_model(tmp_path / "model", st=False)
    dialogues = [{"context": [row["query"], "and"], "response": row["positive"]} for row in questions(300, 0)]
    write(tmp_path / "train.parquet", dialogues[:240])
    write(tmp_path / "validation.parquet", dialogues[240:])
    changes = {"task.negatives": 3, "train.batch_size": 16, "train.steps": 60, "batch_tokens": 512}
    report = finetune(settings(tmp_path, "selection", **changes, **{"train.lr": 3e-3}))
    assert report.figures["held_out_candidates"] == 4
    assert report.figures["held_out_recall_at_1"] > 0.35  # by chance 1 in 4
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model")
    assert model.config.num_labels == 1
