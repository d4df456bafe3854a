"""Settings of the tasks. Of those whose targets lie inside of the text: which columns hold what, and how rows are read."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raybert.config.core import Settings
from raybert.config.paths import MODEL


class ClassificationSettings(Settings):
    """A label, some labels, or a number for a text or a pair of texts."""

    name: Literal["classification"] = Field("classification", description="what is learnt")
    kind: Literal["single", "multi", "regression"] = Field(
        "single",
        description="single: one label a row; multi: any number (a list, or text apart by task.separator); "
        "regression: a number",
    )
    separator: str = Field(
        ",", min_length=1, description="between the labels of a row where they are text (multi)"
    )
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[float, Field(ge=0)]] = Field(
        "none",
        description="weight of each label in the loss; balanced: rows / (labels x rows of the label); or {label: weight}",
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.kind != "single" and self.class_weights != "none":
            raise ValueError("task.class_weights needs task.kind=single")
        return self


class EntitiesSettings(Settings):
    """Token classification: names of people and places, say, in words with tags or in texts with spans."""

    name: Literal["entities"] = Field("entities", description="the task")
    tokens: str = Field("tokens", description="column of lists of words")
    tags: str = Field("tags", description="column of lists of tags, one a word: O, B-person, I-person ...")
    text: str | None = Field(None, description="column of texts, instead of words and tags")
    spans: str = Field(
        "entities",
        description="column of lists of {start, end, label}, in characters of the text; end exclusive",
    )
    scheme: Literal["bio", "bioes"] = Field(
        "bio", description="tags that the model learns; those of the data are recognised: BIO, BIOES or BILOU"
    )
    errors: Literal["reject", "repair"] = Field(
        "reject",
        description="a row whose tags break the scheme, or whose spans begin inside of a word; repair: read the tags "
        "as conlleval does, widen the spans",
    )
    label_all: bool = Field(
        False, description="train on every piece of a word, not on its first alone; only the first is read"
    )
    overlap: int = Field(
        64, ge=0, description="tokens that neighbouring windows of a long row share; at most half a window"
    )


class RelationsSettings(Settings):
    """The relation between two marked places in a text, as in SemEval-2010 task 8."""

    name: Literal["relations"] = Field("relations", description="the task")
    text: str = Field("text", description="column of texts")
    label: str = Field("label", description="column of relations: Cause-Effect(e1,e2), Other ...")
    first: str = Field(
        "e1", description="the first place is written <e1>...</e1>, or is {start, end} in spans"
    )
    second: str = Field("e2", description="the second place, likewise")
    spans: bool = Field(
        False,
        description="the places are in columns named as task.first and task.second, each {start, end} in characters "
        "of the text, not marked in the text",
    )
    markers: tuple[str, str, str, str] = Field(
        ("[E1]", "[/E1]", "[E2]", "[/E2]"),
        description="tokens added to the vocabulary and put around the two places",
    )
    other: str | None = Field("Other", description="the label that is no relation; macro F1 leaves it out")

    @model_validator(mode="after")
    def _places_differ(self) -> Self:
        if self.first == self.second:
            raise ValueError(f"task.first and task.second are both {self.first!r}; they must differ")
        if len(set(self.markers)) < 4 or not all(self.markers):
            raise ValueError(f"task.markers={list(self.markers)} must be four different tokens")
        return self


class AnswersSettings(Settings):
    """Extractive question answering: the span of a context that answers a question, as in SQuAD."""

    name: Literal["answers"] = Field("answers", description="the task")
    question: str = Field("question", description="column of questions")
    context: str = Field("context", description="column of texts that hold the answers")
    answer: str = Field(
        "answer",
        description="column of answers: a text, or a list of texts that are right; null or empty: none",
    )
    answer_start: str = Field(
        "answer_start", description="column of the character that the answer begins at, or a list of them"
    )
    allow_unanswerable: bool = Field(
        False, description="rows without an answer are learnt and predicted, not rejected"
    )
    overlap: int = Field(
        128,
        ge=0,
        description="tokens that neighbouring windows of a long context share; at most half a window",
    )
    max_answer: int = Field(30, ge=1, description="tokens of a predicted answer at most")
    null_threshold: float = Field(
        0.0,
        description="with allow_unanswerable: no answer where its score exceeds that of the best span by more than this",
    )


class GenerationSettings(Settings):
    """Sequence to sequence, translation or summarisation, by an encoder-decoder made of BERT weights."""

    name: Literal["generation"] = Field("generation", description="the task")
    source: str = Field("source", description="column of the texts that are read")
    target: str = Field("target", description="column of the texts that are to be written")
    target_tokenizer: Annotated[str | None, MODEL] = Field(
        None,
        description="folder of a tokenizer for the target, as raybert vocabulary makes; default: the encoder's own",
    )
    decoder: Annotated[str | None, MODEL] = Field(
        None,
        description="folder or hub name of the model whose weights the decoder begins with; default: the encoder's. "
        "Its word embeddings are new where task.target_tokenizer has another vocabulary, cross attention always is",
    )
    decoder_layers: int | None = Field(
        None, ge=1, description="layers of the decoder, the lowest of task.decoder; default: all"
    )
    share: bool = Field(
        False, description="encoder and decoder have the same weights but for cross attention"
    )
    max_target_length: int = Field(
        128,
        ge=2,
        description="tokens of a target to learn from, its end included; longer ones lose their end",
    )
    beams: int = Field(
        4, ge=1, description="of the beam search that writes; 1: the likeliest token each time"
    )
    length_penalty: float = Field(
        1.0, description="a finished beam's score is divided by its length to this power; more: longer texts"
    )
    no_repeat_ngram: int = Field(
        0, ge=0, description="so many tokens in a row are not written twice; 0: any are"
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="tokens that are written at most; default: task.max_target_length"
    )
    generate: Literal["end", "evaluations", "never"] = Field(
        "end",
        description="when the validation rows are written out for BLEU, chrF and ROUGE: by the finished model, at every "
        "evaluation (BLEU then chooses the best model, else the loss does), or never",
    )
    bleu_tokenizer: Literal["13a", "intl", "zh", "char", "none"] = Field(
        "13a",
        description="how sacreBLEU splits words: 13a for most languages, zh for Chinese, char for Japanese",
    )

    @property
    def longest_output(self) -> int:
        """Tokens that are written at most, the end included."""
        return self.max_new_tokens or self.max_target_length

    @model_validator(mode="after")
    def _columns_and_decoder(self) -> Self:
        if self.source == self.target:
            raise ValueError(f"task.source and task.target are both {self.source!r}; they must differ")
        if self.share and self.decoder is not None:
            raise ValueError("task.share=true begins with the encoder's weights; leave task.decoder out")
        return self
