"""Texts of a request as JSON brings them: checked so that the error says which one is wrong, and how."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator

_KINDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def kind_of(value: Any) -> str:
    """What a value of JSON is, in words."""
    return _KINDS.get(type(value), "null")


def _check_texts(value: Any) -> Any:
    if not isinstance(value, str):
        _check_list(value, "must be a text or a list of texts")
    return value


def _check_list(value: Any, wanted: str) -> Any:
    if not isinstance(value, list):
        raise ValueError(f"{wanted}, not {kind_of(value)}")
    for place, each in enumerate(value):
        if type(each) is not str:
            raise ValueError(f"[{place}] must be a text, not {kind_of(each)}")
    return value


def _check_tokens(value: Any) -> Any:
    """A text, texts, token ids, or lists of them: all of a list are what its first is."""
    first = value[0] if isinstance(value, list) and value else ""
    if type(first) is int:
        _check_each(value, lambda each: type(each) is int, "a token id")
    elif isinstance(first, list):
        _check_each(value, _are_ids, "a list of token ids")
    else:
        _check_texts(value)
    return value


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int for each in value)


def _check_each(values: list[Any], fits: Callable[[Any], bool], wanted: str) -> None:
    for place, each in enumerate(values):
        if not fits(each):
            what = "one with something else in it" if isinstance(each, list) else kind_of(each)
            raise ValueError(f"[{place}] must be {wanted}, not {what}")


def _check_predicted(value: Any) -> Any:
    """A text, a text or a pair in a list, or a list of such lists."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        for place, each in enumerate(value):
            if not (isinstance(each, list) and len(each) in (1, 2) and all(type(x) is str for x in each)):
                raise ValueError(f"[{place}] must be a list of one text, or of the two of a pair")
        return value
    return _check_texts(value)


Texts = Annotated[str | list[str], BeforeValidator(_check_texts)]
"""A text or several."""

TextList = Annotated[list[str], BeforeValidator(lambda value: _check_list(value, "must be a list of texts"))]
"""Texts."""

TextsOrIds = Annotated[str | list[str] | list[int] | list[list[int]], BeforeValidator(_check_tokens)]
"""As OpenAI has it: a text or several, or token ids of one or several."""

TextsOrPairs = Annotated[str | list[str] | list[list[str]], BeforeValidator(_check_predicted)]
"""As TEI's /predict has it: a text, [text], [text, text] for a pair, or a list of such lists."""
