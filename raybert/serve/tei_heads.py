"""What text-embeddings-inference answers by a head: /predict and /rerank. Entities, which it does not have, are answered as
transformers' token-classification pipeline does."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field, RootModel

from raybert.serve.calls import Body, Call, Route, as_json
from raybert.serve.errors import ApiError, invalid
from raybert.serve.http import Reply
from raybert.serve.ranks import RerankRequest, RerankResponse, ranked
from raybert.serve.tei_vectors import texts_of
from raybert.serve.texts import TextsOrPairs


class PredictParameters(Body):
    """Of Hugging Face's inference clients. With them, labels of one text come in a list of lists, as those clients read it,
    and a list of texts is several of them."""

    top_k: int | None = Field(None, ge=1, description="labels of a text, the most probable ones")
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = Field(
        None, description="of outputs to scores; default: as the model was trained"
    )
    aggregation_strategy: Literal["simple", "first"] | None = Field(
        None, description="entities are of whole words, each with the tag of its first token"
    )
    ignore_labels: list[str] | None = Field(None, description="entities that are left out")


class PredictRequest(Body):
    """POST /predict."""

    inputs: TextsOrPairs = Field(
        description="a text; [text, text] for a pair; [[text], ...] or [[text, text], ...] for several. For entities a text "
        "or a list of texts"
    )
    truncate: bool | None = Field(
        None, description="cut texts that are too long, instead of refusing them; for entities none is"
    )
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = Field(
        None, description="right: the end is cut"
    )
    raw_scores: bool = Field(False, description="the outputs of the model instead of probabilities")
    parameters: PredictParameters | None = None


class Label(BaseModel):
    """A label of a text and its probability, or the value of a regression."""

    label: str
    score: float


class FoundEntity(BaseModel):
    """An entity, characters [start, end) of the text."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


class PredictResponse(
    RootModel[list[Label] | list[list[Label]] | list[FoundEntity] | list[list[FoundEntity]]]
):
    """The labels, the most probable first, or the entities of the input; a list of these for several inputs."""


async def predict(model: Any, request: PredictRequest, call: Call) -> Reply:
    """Labels or entities of texts, or of pairs of texts."""
    engine, given = model.engine, request.parameters or PredictParameters()
    inputs, several = _inputs_of(request, pairs=engine.pairs)
    _refuse_left(request.truncation_direction)
    found = await model.compute(
        inputs, engine.way(call.prompt_name), call=call, truncate=request.truncate, field="inputs"
    )
    if engine.finds_entities:
        # work for many texts, from which the event loop is kept free
        decoded = await model.in_tokenizer(engine.decode, found)
        rows: list[Any] = [_entities(row, given) for row in decoded]
    else:
        function = given.function_to_apply or ("none" if request.raw_scores else None)
        scores = engine.scores(found, function)
        rows = [_labels(row, engine.labels, given.top_k) for row in scores]
        several = several or request.parameters is not None
    return as_json(rows if several else rows[0], found.headers)


async def rerank(model: Any, request: RerankRequest, call: Call) -> Reply:
    """Texts by what a model that reads query and text together says."""
    query, texts = texts_of(request.query, "query")[0], texts_of(request.texts, "texts")
    _refuse_left(request.truncation_direction)
    found = await model.compute(
        [(query, text) for text in texts],
        model.engine.way(call.prompt_name),
        call=call,
        truncate=request.truncate,
        field="texts",
    )
    scores = model.engine.scores(found, "none" if request.raw_scores else "sigmoid")[:, 0]
    return as_json(ranked(scores, request), found.headers)


def _inputs_of(request: PredictRequest, *, pairs: bool) -> tuple[list[Any], bool]:
    """Texts, or pairs of them, and whether the client gave several. Raises ApiError for what the model cannot read."""
    given: Any = request.inputs
    if isinstance(given, str):
        return texts_of(given), False
    if not given:
        raise ApiError(400, "`inputs` cannot be empty", "inputs", kind="Empty")
    if isinstance(given[0], str) and (request.parameters is not None or not pairs):
        return texts_of(given), True
    several = not isinstance(given[0], str)
    rows = given if several else [given]
    if len(rows[0]) > 2:
        raise invalid(
            "inputs: [text, text] is a pair; write several texts as [[text], [text], ...]", "inputs"
        )
    for place, row in enumerate(rows):
        texts_of(row, f"inputs[{place}]" if several else "inputs")
        if len(row) != len(rows[0]):
            raise invalid(f"inputs[{place}]: texts and pairs of texts in one request", "inputs")
        if len(row) > 1 and not pairs:
            raise invalid(f"inputs[{place}]: the model reads one text, not two", "inputs")
    return ([row[0] for row in rows] if len(rows[0]) == 1 else [tuple(row) for row in rows]), several


def _refuse_left(side: str | None) -> None:
    if side is not None and side.lower() == "left":
        raise invalid(
            "truncation_direction: a model with a head cuts the end of a text", "truncation_direction"
        )


def _labels(scores: np.ndarray, labels: Sequence[str], top: int | None) -> list[dict[str, Any]]:
    order = np.argsort(-scores, kind="stable")[:top].tolist()
    return [{"label": labels[place], "score": float(scores[place])} for place in order]


def _entities(row: dict[str, Any], given: PredictParameters) -> list[dict[str, Any]]:
    return [
        {
            "entity_group": one["label"],
            "score": one["score"],
            "word": one["text"],
            "start": one["start"],
            "end": one["end"],
        }
        for one in row["entities"]
        if one["label"] not in (given.ignore_labels or ())
    ]


PREDICT = {"/predict": Route("tei", PredictRequest, predict, "Labels or entities of texts", PredictResponse)}
RERANK = {
    "/rerank": Route("tei", RerankRequest, rerank, "Texts by how well they fit a query", RerankResponse)
}
