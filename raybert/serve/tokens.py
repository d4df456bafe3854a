"""/tokenize of text-embeddings-inference: what a model's tokenizer makes of texts."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field, RootModel
from tokenizers import Tokenizer

from raybert.serve.calls import Body, Call, Route, as_json
from raybert.serve.errors import ApiError, invalid
from raybert.serve.http import Reply
from raybert.serve.texts import Texts

_MOST_CHARS = 1_000_000  # of a request: every one may become a token, and its entry in the answer


class TokenizeRequest(Body):
    """POST /tokenize."""

    inputs: Texts = Field(description="a text or several")
    add_special_tokens: bool = Field(True, description="with [CLS], [SEP] and their like")
    prompt_name: str | None = Field(None, description="one of the model's prompts, put before every text")


class Token(BaseModel):
    """A token: its piece of the prompt and the text, characters [start, stop); a special one lies nowhere in it."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class TokenizeResponse(RootModel[list[list[Token]]]):
    """The tokens of every input. Nothing is cut."""


class Tokens:
    """Texts to tokens as /tokenize answers them, by a tokenizer of its own: for one thread at a time.

    Args:
        tokenizer_json: the text of a tokenizer.json; None where the model's tokenizer has none.
        name: of the model, for errors.
    """

    def __init__(self, tokenizer_json: str | None, name: str) -> None:
        self._json, self._name = tokenizer_json, name
        self._made: Tokenizer | None = None

    def __call__(self, texts: Sequence[str], specials: bool) -> list[list[dict[str, Any]]]:
        """A list of `Token` for every text. Raises ApiError where the model's tokenizer cannot tell."""
        if self._json is None:
            raise invalid(f"the tokenizer of {self._name} is written in Python and tells no places of tokens")
        if self._made is None:
            self._made = Tokenizer.from_str(self._json)
            self._made.no_truncation()
            self._made.no_padding()
        encodings = self._made.encode_batch(list(texts), add_special_tokens=specials)
        return [_tokens(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]


def _tokens(text: str, encoding: Any) -> list[dict[str, Any]]:
    found = []
    parts = zip(encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
    for number, token, (start, stop), special in parts:
        if special:
            found.append({"id": number, "text": token, "special": True, "start": None, "stop": None})
        else:
            piece = text[start:stop]
            found.append({"id": number, "text": piece, "special": False, "start": start, "stop": stop})
    return found


async def tokenize(model: Any, request: TokenizeRequest, call: Call) -> Reply:
    """The tokens of texts, empty ones included."""
    texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    if not texts:
        raise ApiError(400, "`inputs` cannot be empty", "inputs", kind="Empty")
    model.check_count(texts, "inputs")
    if sum(map(len, texts)) > _MOST_CHARS:
        raise ApiError(413, f"inputs have more than {_MOST_CHARS} characters together; send fewer", "inputs")
    if prompt_name := request.prompt_name or call.prompt_name:
        prompt = model.engine.way(prompt_name).prompt
        texts = [prompt + text for text in texts]
    return as_json(await model.in_tokenizer(model.engine.tokens, texts, request.add_special_tokens))


ROUTES = {"/tokenize": Route("tei", TokenizeRequest, tokenize, "Tokens of texts", TokenizeResponse)}
