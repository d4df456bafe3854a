"""The routes of text-embeddings-inference: https://huggingface.github.io/text-embeddings-inference."""

from typing import Any

from pydantic import Field, RootModel

from raybert.serve.calls import Body, Call, Route, as_json
from raybert.serve.errors import ApiError
from raybert.serve.http import Reply


class EmbedRequest(Body):
    """POST /embed."""

    inputs: str | list[str] = Field(description="a text or several")
    normalize: bool = Field(True, description="vectors of length 1")
    truncate: bool | None = Field(None, description="cut texts that are too long, instead of refusing them")
    prompt_name: str | None = Field(None, description="one of the model's prompts, put before every text")
    dimensions: int | None = Field(None, ge=1, description="the first so many numbers")


class EmbedResponse(RootModel[list[list[float]]]):
    """The vectors in the order of the inputs."""


async def embed(model: Any, request: EmbedRequest, call: Call) -> Reply:
    """Vectors of texts."""
    engine = model.engine
    texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    if not texts or not all(text.strip() for text in texts):
        raise ApiError(400, "`inputs` cannot be empty", "inputs", kind="Empty")
    way = engine.way(request.prompt_name or call.prompt_name)
    found = await model.compute(texts, way, call=call, truncate=request.truncate, field="inputs")
    return as_json(engine.finish(found.rows, request.dimensions, request.normalize), found.headers)


ROUTES: dict[str, Route] = {"/embed": Route("tei", EmbedRequest, embed, "Vectors of texts", EmbedResponse)}
