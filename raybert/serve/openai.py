"""OpenAI's embeddings: https://platform.openai.com/docs/api-reference/embeddings, with fields of ours beside its own."""

import base64
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from raybert.encoder.tokenizing import Tokenized
from raybert.serve.calls import Body, Call, Route, as_json
from raybert.serve.errors import ApiError, invalid
from raybert.serve.http import Reply
from raybert.serve.texts import TextsOrIds


class EmbeddingsRequest(Body):
    """POST /v1/embeddings."""

    input: TextsOrIds = Field(description="a text or several; token ids only with `tokenizer`")
    model: str = Field(description="a name of /v1/models, or NAME:PROMPT")
    encoding_format: Literal["float", "base64"] | None = Field(
        "float", description="base64: of little-endian float32"
    )
    dimensions: int | None = Field(None, ge=1, description="the first so many numbers, at length 1 again")
    user: str | None = Field(None, description="passed over")
    prompt_name: str | None = Field(None, description="one of the model's prompts, put before every text")
    truncate: bool | None = Field(None, description="cut texts that are too long, instead of refusing them")
    tokenizer: str | None = Field(
        None,
        description="the name of the model, where `input` holds ids of its own tokenizer, special ones included",
    )


class Usage(BaseModel):
    """Tokens, special ones included."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """A vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsResponse(BaseModel):
    """The vectors in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


async def embeddings(model: Any, request: EmbeddingsRequest, call: Call) -> Reply:
    """Vectors of texts, or of token ids that are the model's own."""
    engine = model.engine
    engine.check_dimensions(request.dimensions)
    way = engine.way(request.prompt_name or call.prompt_name)
    inputs = [request.input] if isinstance(request.input, str) else request.input
    if not inputs:
        raise invalid("input is empty", "input")
    if isinstance(inputs[0], str):
        texts: Any = _texts(inputs, single=isinstance(request.input, str))
    else:
        texts = _ids(inputs, request, model, engine)
    found = await model.compute(texts, way, call=call, truncate=request.truncate)
    normalize = engine.encoder.normalized or request.dimensions is not None
    vectors = engine.finish(found.rows, request.dimensions, normalize)
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    data = [
        {"object": "embedding", "index": i, "embedding": vector}
        for i, vector in enumerate(_written(vectors, request.encoding_format))
    ]
    return as_json({"object": "list", "data": data, "model": request.model, "usage": usage}, found.headers)


ROUTES = {
    "/v1/embeddings": Route("openai", EmbeddingsRequest, embeddings, "Vectors of texts", EmbeddingsResponse)
}


def _written(vectors: np.ndarray, encoding_format: str | None) -> Any:
    if encoding_format != "base64":
        return vectors
    return [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]


def _texts(inputs: list[Any], *, single: bool) -> list[str]:
    for place, text in enumerate(inputs):
        if not text.strip():
            which = "input" if single else f"input[{place}]"
            raise invalid(f"{which} is empty", "input")
    return inputs


def _ids(inputs: list[Any], request: EmbeddingsRequest, model: Any, engine: Any) -> list[list[int]]:
    """Token ids, checked: those of another tokenizer give vectors that look right and are wrong."""
    if request.tokenizer != model.name:
        raise invalid(
            f"input holds token ids, and nothing says that they are of this model's tokenizer: send texts (LangChain: "
            f"check_embedding_ctx_length=False), or ids of {model.name} with tokenizer={model.name!r}",
            "input",
            "token_ids_not_supported",
        )
    rows = [inputs] if isinstance(inputs[0], int) else inputs
    known = engine.encoder.vocabulary_size
    for place, row in enumerate(rows):
        if not row:
            raise invalid(f"input[{place}] is empty", "input")
        if min(row) < 0 or max(row) >= known:
            raise invalid(f"input[{place}] has a token id that is not below {known}", "input")
        if len(row) > engine.max_length:
            raise ApiError(
                400,
                f"input[{place}] has more than {engine.max_length} tokens",
                "input",
                "context_length_exceeded",
            )
    return rows


def as_tokenized(rows: list[list[int]]) -> Tokenized:
    """Ids that a client sent."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(row) for row in rows], dtype=np.int64)])
    values = np.array([each for row in rows for each in row], np.int32)
    return Tokenized(values, offsets, np.zeros(len(rows), bool), 0)
