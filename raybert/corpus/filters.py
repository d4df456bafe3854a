"""A filter on columns, as people write it, to an Arrow expression: `package == 'gzip' and year >= 2020`."""

import functools
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
      | (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
      | (?P<quoted>`[^`]+`)
      | (?P<word>[^\W\d]\w*(?:\.\w+)*)
      | (?P<op>==|!=|<=|>=|<|>)
      | (?P<mark>[\[\](),])
    )""",
    re.VERBOSE,
)
_OPS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}
_USAGE = "write: column op value [and ...], op one of == != < <= > >= in"


@dataclass(frozen=True)
class Filter:
    """What `parse_filter` made: the expression and the columns that it reads."""

    expression: pc.Expression
    columns: tuple[str, ...]

    def rows(self, table: pa.Table) -> np.ndarray:
        """The numbers, ascending, of the rows of `table` that pass."""
        numbers = pa.array(np.arange(table.num_rows))
        # selected by Arrow itself: no column of a corpus has an empty name
        return table.append_column("", numbers).filter(self.expression).column("").to_numpy()


def parse_filter(text: str, schema: pa.Schema) -> Filter:
    """Read a filter over the columns of `schema`.

    Grammar: `column op value`, any number joined by `and`. Operators: == != < <= > >= in. Values: strings in single or
    double quotes (the quote itself is written twice), numbers, true, false, null (with == and != only), and after `in`
    a list in brackets. A column name that is no plain word is put in `backquotes`. Dates are compared with ISO text.
    As in SQL, a row whose column is null passes only `== null`.

    Raises:
        ValueError: one line that names search.filter, what is wrong and what may stand there.
    """
    parser = _Parser(text, schema)
    clauses = [parser.clause()]
    while parser.next_is("word", "and"):
        parser.take()
        clauses.append(parser.clause())
    if parser.token is not None:
        parser.fail(f"expected `and` or the end before {parser.token[1]!r}")
    return Filter(functools.reduce(operator.and_, clauses), tuple(dict.fromkeys(parser.columns)))


class _Parser:
    """One pass over the tokens; `token` is the next one as (kind, text), None at the end."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self.text, self.schema, self.columns = text, schema, []
        self._at = 0
        self.token: tuple[str, str] | None = None
        self.take()

    def fail(self, why: str) -> NoReturn:
        raise ValueError(f"search.filter={self.text!r}: {why}; {_USAGE}")

    def take(self) -> tuple[str, str]:
        """The next token; moves on."""
        taken = self.token
        if not self.text[self._at :].strip():
            self.token = None
            return taken
        match = _TOKEN.match(self.text, self._at)
        if match is None:
            self.fail(f"cannot read {self.text[self._at :].strip()[:20]!r}")
        self._at = match.end()
        self.token = (match.lastgroup, match[match.lastgroup])
        return taken

    def next_is(self, kind: str, text: str) -> bool:
        """Whether the next token is this word or mark, in any case."""
        return self.token is not None and self.token[0] == kind and self.token[1].lower() == text

    def clause(self) -> pc.Expression:
        """`column op value`."""
        name = self._column()
        stored = self.schema.field(name).type
        kind = _compared_as(stored)
        column = pc.field(name) if kind == stored else pc.field(name).cast(kind)
        if self.next_is("word", "in"):
            self.take()
            return _any_of(column, self._list(name, kind), kind)
        if self.token is None or self.token[0] != "op":
            self.fail(
                f"expected an operator after {name}" + (f", not {self.token[1]!r}" if self.token else "")
            )
        op = self.take()[1]
        value = self._value(name, kind)
        if value is None and op not in ("==", "!="):
            self.fail(f"null can only be compared with == and !=, not {op}")
        if value is None:
            return column.is_null() if op == "==" else column.is_valid()
        if pa.types.is_integer(kind):
            return _compare_integers(column, op, value, kind)
        return _OPS[op](column, value)

    def _column(self) -> str:
        if self.token is None or self.token[0] not in ("word", "quoted"):
            self.fail("expected a column" + (f" before {self.token[1]!r}" if self.token else " at the end"))
        name = self.take()[1].strip("`")
        if name not in self.schema.names:
            raise ValueError(
                f"search.filter: there is no column {name!r}; there are {', '.join(self.schema.names)}"
            )
        self.columns.append(name)
        return name

    def _list(self, name: str, kind: pa.DataType) -> list[Any]:
        closing = "]" if self.next_is("mark", "[") else ")" if self.next_is("mark", "(") else None
        if closing is None:
            self.fail("expected a list after `in`, as in ['a', 'b']")
        self.take()
        values = []
        while not self.next_is("mark", closing):
            values.append(self._value(name, kind))
            if self.next_is("mark", ","):
                self.take()
            elif not self.next_is("mark", closing):
                self.fail(f"expected a comma or {closing} in the list")
        self.take()
        if not values or any(value is None for value in values):
            self.fail(f"a list holds values, not null; for missing ones write {name} == null")
        return values

    def _value(self, name: str, kind: pa.DataType) -> Any:
        """A literal that compares with a column of type `kind`: a number for integers, else a scalar; None for null."""
        token = self.token
        if token is None or token[0] in ("op", "mark", "quoted"):
            self.fail(f"expected a value for {name}" + (f" before {token[1]!r}" if token else ""))
        self.take()
        group, text = token
        if group == "word" and text.lower() not in _CONSTANTS:
            self.fail(f"{text!r} is no value; put strings in quotes")
        value = _literal(group, text)
        if value is None:
            return None
        if isinstance(value, float) and pa.types.is_float16(self.schema.field(name).type):
            value = float(np.float16(value))  # 0.1 means the 0.1 that the column can hold
        try:
            return _fit(value, kind)
        except (pa.ArrowException, OverflowError):
            self.fail(f"the column {name} is {kind}, which does not compare with {text}")


def _literal(group: str, text: str) -> Any:
    if group == "text":
        return text[1:-1].replace(text[0] * 2, text[0])
    if group == "number":
        return float(text) if re.search(r"[.eE]", text) else int(text)
    return _CONSTANTS[text.lower()]


def _compared_as(kind: pa.DataType) -> pa.DataType:
    """The type in which a column is compared: Arrow cannot compare every type it can store."""
    if pa.types.is_dictionary(kind):
        return _compared_as(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_decimal(kind):
        return pa.float64()
    return pa.float32() if pa.types.is_float16(kind) else kind


def _fit(value: Any, kind: pa.DataType) -> Any:
    """Raises ArrowException where a value of this sort makes no sense for the column."""
    if isinstance(value, str) and pa.types.is_timestamp(kind) and kind.tz:
        try:
            return pa.scalar(value).cast(kind)
        except pa.ArrowInvalid:  # without an offset it means UTC
            return pa.scalar(value).cast(pa.timestamp(kind.unit)).cast(kind)
    if isinstance(value, str):
        fits = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_temporal(kind)
    elif isinstance(value, bool):
        fits = pa.types.is_boolean(kind)
    elif pa.types.is_integer(kind):
        return value
    else:
        fits = pa.types.is_floating(kind)
    if not fits:
        raise pa.ArrowTypeError(f"{value!r} is no {kind}")
    return pa.scalar(value, kind) if not isinstance(value, str) else pa.scalar(value).cast(kind)


def _limits(kind: pa.DataType) -> tuple[int, int]:
    signed = pa.types.is_signed_integer(kind)
    return (
        (-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1)
        if signed
        else (0, 2**kind.bit_width - 1)
    )


def _compare_integers(column: pc.Expression, op: str, value: int | float, kind: pa.DataType) -> pc.Expression:
    """Exact also for 1.5 and for numbers that the column's type cannot hold; Arrow would round the column or fail."""
    low, high = _limits(kind)
    every, none = column.is_valid(), pc.scalar(False)
    if low <= value <= high and value == int(value):
        return _OPS[op](column, pa.scalar(int(value), kind))
    if op in ("==", "!="):
        return none if op == "==" else every
    if value > high or value < low:
        return every if (value > high) == (op in ("<", "<=")) else none
    return (
        column <= pa.scalar(math.floor(value), kind)
        if op in ("<", "<=")
        else column >= pa.scalar(math.ceil(value), kind)
    )


def _any_of(column: pc.Expression, values: list[Any], kind: pa.DataType) -> pc.Expression:
    if pa.types.is_integer(kind):
        low, high = _limits(kind)
        values = [int(value) for value in values if low <= value <= high and value == int(value)]
        return column.isin(pa.array(values, kind)) if values else pc.scalar(False)
    return column.isin(pa.array(values, kind))
