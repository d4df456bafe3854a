"""Settings of the tasks that compare two texts: how alike they are, and which text answers which."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raybert.config.core import Settings

Dimension = Annotated[int, Field(ge=1)]

_POOLING = (
    "token vectors to one vector: cls, mean, max, mean_sqrt_len_tokens, weightedmean, last, or several joined by +; "
    "auto reads the model folder, else mean"
)
_SCALE = "factor of the cosines, 1 / temperature: 20 in sentence-transformers, 50 in FlagEmbedding"


class SimilaritySettings(Settings):
    """How alike two texts are, by the cosine of their vectors, as in the STS benchmark."""

    name: Literal["similarity"] = Field("similarity", description="the task")
    first: str = Field("sentence1", description="column of the first text")
    second: str = Field("sentence2", description="column of the second text")
    score: str = Field("score", description="column of numbers: the higher, the more alike")
    low: float | None = Field(
        None, description="score of texts that have nothing in common; default: the lowest"
    )
    high: float | None = Field(None, description="score of texts that say the same; default: the highest")
    loss: Literal["cosent", "cosine"] = Field(
        "cosent",
        description="cosent: pairs of the batch come in the order of their scores; cosine: squared difference of cosine "
        "and score, brought to 0..1",
    )
    scale: float = Field(20.0, gt=0, description="factor of the differences of cosines (cosent)")
    grad_cache: bool | Literal["auto"] = Field(
        "auto", description="as in task.name=retrieval, of a batch beyond batch_tokens (cosent)"
    )
    pooling: str = Field("auto", description=_POOLING)
    prompt: str | None = Field(
        None, description="text put before both texts; default: the default prompt of the model folder"
    )

    @model_validator(mode="after")
    def _ends_differ(self) -> Self:
        if self.first == self.second:
            raise ValueError(f"task.first and task.second are both {self.first!r}; they must differ")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"task.low={self.low:g} must be less than task.high={self.high:g}")
        return self


class RetrievalSettings(Settings):
    """Queries find their documents among all those of the batch (multiple negatives ranking)."""

    name: Literal["retrieval"] = Field("retrieval", description="the task")
    query: str = Field(
        "query", description="column of queries: texts, or lists of the turns of a dialogue, the newest last"
    )
    positive: str = Field("positive", description="column of the document that answers the query")
    negatives: str | list[str] = Field(
        [],
        description="column of lists of documents that do not answer the query, or columns of one each; without them "
        "the other documents of the batch are the only ones",
    )
    scale: float = Field(20.0, gt=0, description=_SCALE)
    symmetric: bool = Field(False, description="documents find their queries, too; the mean of both losses")
    dimensions: list[Dimension] = Field(
        [],
        description="nested sizes of the vectors that are trained (Matryoshka), the whole width among them; none: that alone",
    )
    weights: list[Annotated[float, Field(ge=0)]] = Field(
        [], description="of the losses of task.dimensions, which are added; default: 1 each"
    )
    grad_cache: bool | Literal["auto"] = Field(
        "auto",
        description="a batch beyond batch_tokens is computed twice in pieces, with the gradient of the whole (GradCache); "
        "auto: where there are several pieces; false: all pieces are kept in memory",
    )
    pooling: str = Field("auto", description=_POOLING)
    query_prompt: str | None = Field(
        None,
        description="text put before queries; default: the prompt `query` of the model folder, if it has one",
    )
    document_prompt: str | None = Field(
        None,
        description="text put before documents; default: the prompt `document` or `passage` of the model folder",
    )

    @property
    def negative_columns(self) -> list[str]:
        """`negatives` as a list."""
        return [self.negatives] if isinstance(self.negatives, str) else list(self.negatives)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        named = [self.query, self.positive, *self.negative_columns]
        if len(set(named)) < len(named):
            raise ValueError(
                f"task.query, task.positive and task.negatives name a column twice: {', '.join(named)}"
            )
        if len(set(self.dimensions)) < len(self.dimensions):
            raise ValueError(f"task.dimensions={self.dimensions} names a size twice")
        if self.weights and len(self.weights) != len(self.dimensions):
            raise ValueError(
                f"task.weights has {len(self.weights)} numbers for the {len(self.dimensions)} of task.dimensions"
            )
        return self


class SelectionSettings(Settings):
    """The right response to a context among wrong ones, by a model that reads both together (cross-encoder)."""

    name: Literal["selection"] = Field("selection", description="the task")
    context: str = Field(
        "context",
        description="column of contexts: texts, or lists of the turns of a dialogue, the newest last",
    )
    response: str = Field("response", description="column of right responses")
    candidates: str | None = Field(
        None, description="column of lists of wrong responses; default: those of other rows are drawn"
    )
    negatives: Annotated[int, Field(ge=1)] = Field(
        9, description="wrong responses that are drawn for a row, the same in every epoch"
    )
    seed: int = Field(0, ge=0, description="of the draw of wrong responses")

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        named = [self.context, self.response, *([self.candidates] if self.candidates else [])]
        if len(set(named)) < len(named):
            raise ValueError(
                f"task.context, task.response and task.candidates name a column twice: {', '.join(named)}"
            )
        return self
