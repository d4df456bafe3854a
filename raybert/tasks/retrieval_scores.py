"""How well queries find their documents: every query ranks the documents of all rows by cosine."""

import base64
import json
from collections.abc import Sequence

import numpy as np

_BLOCK = 1024  # queries that are compared at once
_DEPTH = 10


class RetrievalScores:
    """Streaming: the vectors are kept, 4 bytes a number, and ranked in the end.

    Equal texts are one query, or one document; a query is answered by the documents of all its rows. Figures, means over
    the queries: accuracy_at_1, mrr_at_10, recall_at_10, ndcg_at_10 (the gain of a document is 1), as those of
    sentence-transformers' InformationRetrievalEvaluator; `NAME_dim64` of the first 64 numbers; and the loss of one
    direction against all documents, which is higher the more of them there are.

    Args:
        scale: of the cosines in the loss.
        dimensions: sizes for which there are figures beside those of the whole width.
    """

    def __init__(self, scale: float = 20.0, dimensions: Sequence[int] = ()) -> None:
        self._scale, self._dimensions = scale, tuple(dimensions)
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def add_pairs(
        self, queries: np.ndarray, documents: np.ndarray, query_keys: np.ndarray, document_keys: np.ndarray
    ) -> None:
        """Vectors [n, width] of n queries and their documents, and keys int64 [n], equal for equal texts."""
        for what, vectors in (("query", queries), ("document", documents)):
            if not np.isfinite(vectors).all():
                raise ValueError(f"the vector of a {what} is not finite")
        vectors = (np.ascontiguousarray(x, dtype="<f4") for x in (queries, documents))
        keys = (np.ascontiguousarray(x, dtype="<i8") for x in (query_keys, document_keys))
        self._parts.append((*vectors, *keys))

    def merge(self, state: str) -> None:
        """Add the `to_json` of another worker."""
        given = json.loads(state)
        if not given["rows"]:
            return
        vectors = (_array(given[name], "<f4").reshape(given["rows"], -1) for name in ("queries", "documents"))
        keys = (_array(given[name], "<i8") for name in ("query_keys", "document_keys"))
        self._parts.append((*vectors, *keys))

    def to_json(self) -> str:
        """What was added, arrays as base64 of little-endian numbers."""
        names = ("queries", "documents", "query_keys", "document_keys")
        rows = sum(len(part[0]) for part in self._parts)
        arrays = self._arrays() if rows else [np.zeros(0)] * 4
        content = {
            name: base64.b64encode(array.tobytes()).decode()
            for name, array in zip(names, arrays, strict=True)
        }
        return json.dumps({"rows": rows, **content})

    def result(self) -> dict[str, float]:
        """The figures. Raises ValueError if nothing was added."""
        if not sum(len(part[0]) for part in self._parts):
            raise ValueError("there are no rows to evaluate")
        queries, documents, query_keys, document_keys = self._arrays()
        _, first_query, query = np.unique(query_keys, return_index=True, return_inverse=True)
        _, first_document, document = np.unique(document_keys, return_index=True, return_inverse=True)
        # every row says that a document answers a query, some say it twice
        answers = np.unique(np.stack([query, document], 1), axis=0)
        asked, told = queries[first_query], documents[first_document]
        whole = _figures(asked, told, answers, self._scale)
        found = {name: whole[name] for name in (*_NAMES, "loss")}
        for size in self._dimensions:
            if size < asked.shape[1]:
                cut = _figures(asked[:, :size], told[:, :size], answers, self._scale)
                found |= {f"{name}_dim{size}": cut[name] for name in _NAMES}
        return found

    def _arrays(self) -> list[np.ndarray]:
        return [np.concatenate(part) for part in zip(*self._parts, strict=True)]


_NAMES = ("ndcg_at_10", "mrr_at_10", "recall_at_10", "accuracy_at_1")
_GAIN = 1 / np.log2(np.arange(2, _DEPTH + 2))


def _figures(
    queries: np.ndarray, documents: np.ndarray, answers: np.ndarray, scale: float
) -> dict[str, float]:
    """Means over the queries. answers: [m, 2], the numbers of a query and of a document that answers it."""
    queries, documents = _unit(queries), _unit(documents)
    depth = min(_DEPTH, len(documents))
    sums = dict.fromkeys((*_NAMES, "loss"), 0.0)
    starts = np.searchsorted(answers[:, 0], np.arange(len(queries) + 1))
    for at in range(0, len(queries), _BLOCK):
        stop = min(at + _BLOCK, len(queries))
        scores = queries[at:stop] @ documents.T
        right = np.zeros(scores.shape, bool)
        own = answers[starts[at] : starts[stop]]
        right[own[:, 0] - at, own[:, 1]] = True
        hits = np.take_along_axis(right, _best(scores, depth), 1)
        count = right.sum(1)
        ideal = np.cumsum(_GAIN)[np.minimum(count, _DEPTH) - 1]
        sums["accuracy_at_1"] += hits[:, 0].sum()
        sums["mrr_at_10"] += np.where(hits.any(1), 1 / (hits.argmax(1) + 1), 0).sum()
        sums["recall_at_10"] += (hits.sum(1) / count).sum()
        sums["ndcg_at_10"] += ((hits * _GAIN[:depth]).sum(1) / ideal).sum()
        sums["loss"] += _losses(scale * scores.astype(np.float64), right, own - [at, 0]).sum()
    return {name: float(value / len(queries)) for name, value in sums.items()}


def _best(scores: np.ndarray, depth: int) -> np.ndarray:
    """The documents with the highest scores, the best first; of equal ones the first, and they stand by their keys."""
    if depth < scores.shape[1]:
        some = np.sort(np.argpartition(-scores, depth - 1, axis=1)[:, :depth], axis=1)
    else:
        some = np.broadcast_to(np.arange(depth), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, some, 1), axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)


def _losses(scores: np.ndarray, right: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Of every query the mean over its documents of the loss against that document and all wrong ones."""
    wrong = np.logaddexp.reduce(np.where(right, -np.inf, scores), axis=1)
    true = scores[own[:, 0], own[:, 1]]
    each = np.logaddexp(wrong[own[:, 0]], true) - true
    return np.bincount(own[:, 0], each, len(scores)) / right.sum(1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)


def _array(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)
