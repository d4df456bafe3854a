"""What text-embeddings-inference answers by vectors: /embed, /embed_all and /similarity, and /rerank where the model has no
head for it."""

from typing import Any, Literal

import numpy as np
from pydantic import Field, RootModel

from raybert.serve.calls import Body, Call, Route, as_json
from raybert.serve.errors import ApiError
from raybert.serve.http import Reply
from raybert.serve.ranks import RerankRequest, RerankResponse, ranked
from raybert.serve.texts import TextList, Texts

Side = Literal["left", "right", "Left", "Right"] | None  # TEI writes them with capitals, its clients without


class TextParameters(Body):
    """How texts become vectors."""

    truncate: bool | None = Field(None, description="cut texts that are too long, instead of refusing them")
    truncation_direction: Side = Field(
        None, description="what is cut; default: as the model's tokenizer does"
    )
    prompt_name: str | None = Field(None, description="one of the model's prompts, put before every text")


class EmbedAllRequest(TextParameters):
    """POST /embed_all."""

    inputs: Texts = Field(description="a text or several")


class EmbedRequest(EmbedAllRequest):
    """POST /embed."""

    normalize: bool = Field(True, description="vectors of length 1")
    dimensions: int | None = Field(None, ge=1, description="the first so many numbers")


class SimilarityInputs(Body):
    """A text, and those to compare it with."""

    source_sentence: str
    sentences: TextList


class SimilarityRequest(Body):
    """POST /similarity."""

    inputs: SimilarityInputs
    parameters: TextParameters | None = None


class EmbedResponse(RootModel[list[list[float]]]):
    """The vectors in the order of the inputs."""


class EmbedAllResponse(RootModel[list[list[list[float]]]]):
    """For every input a vector for every token, special ones included; neither pooled nor normalised."""


class SimilarityResponse(RootModel[list[float]]):
    """The cosine of every sentence and the source."""


async def embed(model: Any, request: EmbedRequest, call: Call) -> Reply:
    """Vectors of texts."""
    engine, texts = model.engine, texts_of(request.inputs)
    engine.check_dimensions(request.dimensions)
    way = engine.way(request.prompt_name or call.prompt_name, side=request.truncation_direction)
    found = await model.compute(texts, way, call=call, truncate=request.truncate, field="inputs")
    return as_json(engine.finish(found.rows, request.dimensions, request.normalize), found.headers)


async def embed_all(model: Any, request: EmbedAllRequest, call: Call) -> Reply:
    """Vectors of the tokens of texts."""
    texts, prompt_name = texts_of(request.inputs), request.prompt_name or call.prompt_name
    way = model.engine.way(prompt_name, every_token=True, side=request.truncation_direction)
    found = await model.compute(texts, way, call=call, truncate=request.truncate, field="inputs")
    return as_json(found.rows, found.headers)


async def similarity(model: Any, request: SimilarityRequest, call: Call) -> Reply:
    """Cosines of one text and others."""
    inputs, given = request.inputs, request.parameters or TextParameters()
    texts = texts_of(inputs.sentences, "inputs.sentences")
    texts_of(inputs.source_sentence, "inputs.source_sentence")
    way = model.engine.way(given.prompt_name or call.prompt_name, side=given.truncation_direction)

    def name(place: int) -> str:
        return f"inputs.sentences[{place}]" if place < len(texts) else "inputs.source_sentence"

    together = [*texts, inputs.source_sentence]
    found = await model.compute(
        together, way, call=call, truncate=given.truncate, field="inputs.sentences", name=name
    )
    vectors = model.engine.finish(found.rows, None, True)
    return as_json(_cosines(vectors[:-1], vectors[-1]), found.headers)


async def rerank(model: Any, request: RerankRequest, call: Call) -> Reply:
    """Texts by their cosine with the query, each with the prompt that the model has for its kind."""
    engine, texts = model.engine, texts_of(request.texts, "texts")
    query = texts_of(request.query, "query")
    asked = call.prompt_name or ("query" if "query" in engine.prompts else None)
    side, truncate = request.truncation_direction, request.truncate
    ways = engine.way(asked, side=side), engine.way(engine.document_prompt, side=side)
    first = await model.compute(query, ways[0], call=call, truncate=truncate, field="query")
    found = await model.compute(texts, ways[1], call=call, truncate=truncate, field="texts")
    vectors = engine.finish([*found.rows, *first.rows], None, True)
    return as_json(ranked(_cosines(vectors[:-1], vectors[-1]), request), found.headers)


def texts_of(inputs: str | list[str], field: str = "inputs") -> list[str]:
    """A list of texts. Raises ApiError, TEI's Empty, for none, or one of white space."""
    texts = [inputs] if isinstance(inputs, str) else inputs
    for place, text in enumerate(texts):
        if not text.strip():
            which = field if isinstance(inputs, str) else f"{field}[{place}]"
            raise ApiError(400, f"`{which}` cannot be empty", field, kind="Empty")
    if not texts:
        raise ApiError(400, f"`{field}` cannot be empty", field, kind="Empty")
    return texts


def _cosines(vectors: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.clip(vectors @ other, -1, 1)


ROUTES = {
    "/embed": Route("tei", EmbedRequest, embed, "Vectors of texts", EmbedResponse),
    "/embed_all": Route(
        "tei", EmbedAllRequest, embed_all, "Vectors of the tokens of texts", EmbedAllResponse
    ),
    "/similarity": Route(
        "tei", SimilarityRequest, similarity, "Cosines of one text and others", SimilarityResponse
    ),
    "/rerank": Route("tei", RerankRequest, rerank, "Texts by how well they fit a query", RerankResponse),
}
