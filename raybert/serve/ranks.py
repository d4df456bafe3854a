"""/rerank of text-embeddings-inference: texts in the order in which they fit a query."""

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field, RootModel

from raybert.serve.calls import Body
from raybert.serve.texts import TextList


class RerankRequest(Body):
    """POST /rerank."""

    query: str
    texts: TextList
    truncate: bool | None = Field(None, description="cut texts that are too long, instead of refusing them")
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = Field(
        None,
        description="what is cut; default: as the model's tokenizer does; a model with a head cuts the end",
    )
    raw_scores: bool = Field(
        False,
        description="the outputs of the model, not their sigmoid; an encoder answers cosines either way",
    )
    return_text: bool = Field(False, description="with the texts")


class Rank(BaseModel):
    """A text, by its place in the request."""

    index: int
    score: float
    text: str = Field("", description="with return_text alone")


class RerankResponse(RootModel[list[Rank]]):
    """The texts, the best first."""


def ranked(scores: np.ndarray, request: RerankRequest) -> list[dict[str, Any]]:
    """Scores [n] of the texts as a list of `Rank`; those with equal scores in the order of the request."""
    ranks: list[dict[str, Any]] = []
    for place in np.argsort(-scores, kind="stable").tolist():
        text = {"text": request.texts[place]} if request.return_text else {}
        ranks.append({"index": place, "score": float(scores[place]), **text})
    return ranks
