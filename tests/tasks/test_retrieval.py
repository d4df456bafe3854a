"""Queries, documents and hard negatives: examples, prompts, turns of dialogues; figures against another evaluator's."""

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from raybert.config.pair_tasks import RetrievalSettings
from raybert.tasks import retrieval
from raybert.tasks.pair_rows import keys_of
from raybert.tasks.retrieval import Scores, prepare, settle
from raybert.tasks.retrieval_scores import RetrievalScores
from tests.tasks.toys import KINDS, tokenizer

ROWS = [
    {"query": "the quick fox", "positive": "the dog", "wrong": ["a child", "", None], "other": "Paris"},
    {"query": "New York", "positive": " ", "wrong": [], "other": None},
    {"query": "lazy", "positive": "the dog", "wrong": None, "other": None},
]


def texts_of(examples, tok):
    """The sequences as text, without special tokens."""
    return [tok.decode(examples.ids.take(np.array([i])).values.tolist()) for i in range(len(examples))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_its_query_its_document_and_its_negatives(kind):
    tok = tokenizer(kind)
    settings = RetrievalSettings(negatives=["wrong", "other"], query_prompt="over ", document_prompt="with ")
    found, reasons = prepare(pa.Table.from_pylist(ROWS), tok, [], settings, max_length=32)
    assert reasons.tolist() == [None, "positive is empty", None]
    assert found.row.tolist() == [0, 0, 0, 0, 2, 2]
    assert found.targets["role"].tolist() == [0, 1, 2, 3, 0, 1]
    key = found.targets["key"]
    assert key[1] == key[5]
    assert len(set(key.tolist())) == 5
    texts = ["over the quick fox", "with the dog", "with a child", "with Paris", "over lazy", "with the dog"]
    for i, text in enumerate(texts):
        assert found.ids.take(np.array([i])).values.tolist() == tok.encode(text).ids
    unlabelled, _ = prepare(pa.Table.from_pylist(ROWS), tok, None, settings, max_length=32)
    assert unlabelled.targets["role"].tolist() == [0, 1, 0, 1]


def test_the_newest_turns_are_kept():
    rows = [
        {"query": ["the quick brown fox", "in Paris", None, "the lazy dog"], "positive": "jumps over the dog"}
    ]
    tok = tokenizer("wordpiece")
    settings = RetrievalSettings()
    found, _ = prepare(pa.Table.from_pylist(rows), tok, [], settings, max_length=32)
    sep = tok.token_to_id("[SEP]")
    whole = found.ids.take(np.array([0])).values.tolist()
    assert whole == tok.encode("the quick brown fox [SEP] in Paris [SEP] the lazy dog").ids
    assert whole.count(sep) == 3
    cut, _ = prepare(pa.Table.from_pylist(rows), tok, [], settings, max_length=6)
    assert cut.ids.take(np.array([0])).values.tolist() == [whole[0], *whole[-5:]]
    # a document loses its end
    document = found.ids.take(np.array([1])).values.tolist()
    assert cut.ids.take(np.array([1])).values.tolist() == [*document[:5], document[-1]]
    empty, reasons = prepare(
        pa.Table.from_pylist([*rows, {"query": [], "positive": "x"}]), tok, [], settings, max_length=9
    )
    assert reasons[1] == "query has no text"
    assert len(empty) == 2


def data(seed=0, n=60, width=8):
    """Queries near to their documents; some documents and some queries come twice."""
    rng = np.random.default_rng(seed)
    documents = rng.normal(size=(n, width)).astype(np.float32)
    documents[40:50] = documents[:10]
    queries = documents + 0.7 * rng.normal(size=(n, width)).astype(np.float32)
    queries[50:55] = queries[20:25]
    names = [f"d{i - 40 if 40 <= i < 50 else i}" for i in range(n)]
    asked = [f"q{i - 30 if 50 <= i < 55 else i}" for i in range(n)]
    return queries, documents, asked, names


def test_figures_are_those_of_sentence_transformers():
    ir = pytest.importorskip("sentence_transformers.evaluation").InformationRetrievalEvaluator
    queries, documents, asked, names = data()
    relevant: dict[str, set[str]] = {}
    for q, d in zip(asked, names, strict=True):
        relevant.setdefault(q, set()).add(d)
    by_name = dict(zip(asked, queries, strict=True)) | dict(zip(names, documents, strict=True))

    class Model:
        class similarity_fn_name:
            value = "cosine"

        def __init__(self):
            from sentence_transformers.util import cos_sim

            self.similarity, self.model_card_data = cos_sim, None

        def encode(self, texts, **_):
            return np.stack([by_name[text] for text in texts])

    model = Model()
    ids = {name: name for name in by_name}
    evaluator = ir(
        {q: ids[q] for q in relevant},
        {d: ids[d] for d in set(names)},
        relevant,
        write_csv=False,
        score_functions={"cosine": model.similarity},
    )
    evaluator.embed_inputs = lambda model, sentences, **_: model.encode(sentences)
    expected = evaluator.compute_metrices(model)["cosine"]
    scores = RetrievalScores()
    scores.add_pairs(queries, documents, keys_of(asked), keys_of(names))
    found = scores.result()
    assert 0.3 < found["accuracy_at_1"] < 1
    assert found["accuracy_at_1"] == pytest.approx(expected["accuracy@k"][1])
    assert found["mrr_at_10"] == pytest.approx(expected["mrr@k"][10])
    assert found["recall_at_10"] == pytest.approx(expected["recall@k"][10])
    assert found["ndcg_at_10"] == pytest.approx(expected["ndcg@k"][10])


def test_the_loss_and_the_figures_of_nested_sizes():
    queries, documents, asked, names = data()
    asked, names = [str(i) for i in range(60)], [f"d{i}" for i in range(60)]  # all differ
    scores = RetrievalScores(7.0, (8, 3))
    scores.add_pairs(queries, documents, keys_of(asked), keys_of(names))
    cut = RetrievalScores(7.0)
    cut.add_pairs(queries[:, :3], documents[:, :3], keys_of(asked), keys_of(names))
    found = scores.result()
    assert found["ndcg_at_10_dim3"] == pytest.approx(cut.result()["ndcg_at_10"])
    assert "ndcg_at_10_dim8" not in found
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, documents)]
    logits = 7.0 * (unit[0] @ unit[1].T).astype(np.float64)
    losses = np.log(np.exp(logits).sum(1)) - np.diagonal(logits)
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_parts_of_workers_are_the_whole():
    queries, documents, asked, names = data(1)
    whole, parts = RetrievalScores(), [RetrievalScores() for _ in range(3)]
    keys = keys_of(asked), keys_of(names)
    whole.add_pairs(queries, documents, *keys)
    for part, some in zip(parts, (np.arange(25, 60), np.arange(25)), strict=False):
        part.add_pairs(queries[some], documents[some], *(key[some] for key in keys))
    for part in parts[1:]:
        parts[0].merge(part.to_json())
    assert parts[0].result() == pytest.approx(whole.result(), abs=1e-9)
    with pytest.raises(ValueError, match="no rows"):
        parts[2].result()
    with pytest.raises(ValueError, match="the vector of a document is not finite"):
        parts[2].add_pairs(queries, documents * np.inf, *keys)


def test_scores_take_vectors_of_examples():
    tok = tokenizer("wordpiece")
    rows = [{"query": f"fox {i}", "positive": f"dog {i}", "wrong": ["a child"]} for i in range(5)]
    settings = RetrievalSettings(negatives="wrong")
    examples, _ = prepare(pa.Table.from_pylist(rows), tok, [], settings, max_length=16)
    vectors = np.zeros((15, 5), np.float32)
    vectors[np.arange(0, 15, 3), np.arange(5)] = 1
    vectors[np.arange(1, 15, 3), [0, 1, 2, 4, 3]] = 1
    vectors[2::3] = 1
    scores = Scores([], settings)
    scores.add({"vectors": vectors}, examples)
    assert scores.result()["accuracy_at_1"] == 3 / 5
    decoded = retrieval.decode({"vectors": vectors}, examples, [], settings)
    assert [row["score"] for row in decoded] == [1, 1, 1, 0, 0]
    assert decoded[0].keys() == retrieval.output_fields(settings).keys()


def test_too_many_rows_to_evaluate_on(monkeypatch):
    tok = tokenizer("wordpiece")
    rows = [{"query": "fox", "positive": "dog"}] * 3
    examples, _ = prepare(pa.Table.from_pylist(rows), tok, [], RetrievalSettings(), max_length=16)
    monkeypatch.setattr(retrieval, "MOST_ROWS", 2)
    with pytest.raises(ValueError, match="has 3 rows, and every query is compared with all"):
        retrieval.with_truth(examples, pa.table({}), [], RetrievalSettings())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dimensions": [4, 4]}, "names a size twice"),
        ({"dimensions": [8, 4], "weights": [1]}, "1 numbers for the 2"),
        ({"negatives": "positive"}, "name a column twice"),
    ],
)
def test_settings_that_do_not_fit(given, message):
    with pytest.raises(ValidationError, match=message):
        RetrievalSettings(**given)


def test_the_model_folder_says_pooling_and_prompts(tmp_path):
    from raybert.encoder.folders import read_folder
    from tests.encoder.tiny import tiny_model

    prompts = {"query": "ask: ", "passage": "tell: "}
    folder = read_folder(tiny_model(tmp_path / "m", pooling="cls", prompts=prompts))
    found = settle(RetrievalSettings(), folder, {})
    assert (found.pooling, found.query_prompt, found.document_prompt) == ("cls", "ask: ", "tell: ")
    given = settle(RetrievalSettings(pooling="max", query_prompt=""), folder, {})
    assert (given.pooling, given.query_prompt) == ("max", "")
    with pytest.raises(
        ValueError, match=r"task\.dimensions=\[16, 8\] must be sizes up to the width .*, 32, and have it"
    ):
        settle(RetrievalSettings(dimensions=[16, 8]), folder, {})
    assert settle(RetrievalSettings(dimensions=[32, 8]), folder, {}).dimensions == [32, 8]
    with pytest.raises(ValueError, match=r"task\.pooling=middle: 'middle' is none of"):
        settle(RetrievalSettings(pooling="middle"), folder, {})
    left_out = read_folder(tiny_model(tmp_path / "n", include_prompt=False, dense=12, prompts=prompts))
    with pytest.raises(ValueError, match=r"task\.query_prompt='ask: ': .* leaves prompts out of its pooling"):
        settle(RetrievalSettings(), left_out, {})
    bare = {"query_prompt": "", "document_prompt": ""}
    assert settle(RetrievalSettings(**bare, dimensions=[12]), left_out, {}).pooling == "mean"
    with pytest.raises(ValueError, match="a Dense module behind its pooling"):
        settle(RetrievalSettings(**bare, pooling="cls"), left_out, {})
