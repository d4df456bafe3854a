"""Groups of settings: the same key means the same thing in every verb."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raybert.config.core import Settings
from raybert.config.paths import ModelName, Place, Places


class ModelSettings(Settings):
    """The encoder and how a text becomes a vector."""

    name: ModelName = Field("", description="folder or Hugging Face hub name of the model; required")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    pooling: Literal["auto", "cls", "mean", "max", "last"] = Field(
        "auto", description="token vectors to one vector; auto reads the model folder, else mean"
    )
    normalize: bool | Literal["auto"] = Field(
        "auto", description="scale vectors to length 1; auto reads the model folder, else false"
    )
    dimensions: int | None = Field(None, ge=1, description="keep the first n dimensions, then re-normalise")
    max_length: int | None = Field(
        None, ge=3, description="tokens of a text, special ones included; default: the model's"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of computing; auto: bfloat16 where the hardware has it, else float32"
    )
    kernels: Literal["auto", "native", "onednn", "torch", "compiled", "transformers"] = Field(
        "auto",
        description="by what the layers are computed; auto takes the fastest that works: native (bfloat16 on a CPU, "
        "needs a C compiler), onednn (CPU), torch, else transformers; compiled is for a GPU",
    )
    prompt_name: str | None = Field(None, description="one of the prompts that the model folder names")
    prompt: str | None = Field(None, description="text put before every input")
    layers: str = Field(
        "last",
        description="hidden layers to pool: last, -2, sum:last4, mean:last4, concat:last4, concat:-1,-12",
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class CorpusSettings(Settings):
    """Where texts come from."""

    path: Places = Field("", description="files, folders or globs, local or s3:// gs:// hf:// ...; required")
    format: Literal["auto", "parquet", "jsonl", "csv", "tsv", "text", "documents", "arrow", "datasets"] = (
        Field("auto", description="auto: by file name; text is a line a row, documents a file a row")
    )
    text: str | list[str] = Field("text", description="column(s) that hold the text")
    template: str | None = Field(
        None, description='joins columns into one text, as in "{title}\\n{body}"; default: joined by newlines'
    )
    id: str | None = Field(None, description="column that identifies a row; default: file and row number")
    limit: int | None = Field(None, ge=1, description="use the first n rows only")
    max_chars: int = Field(10_000_000, ge=1, description="a longer text is rejected")

    @field_validator("text", mode="before")
    @classmethod
    def _columns_of_text(cls, value: Any) -> Any:
        """`a,b` is two columns."""
        return _split(value) if isinstance(value, str) and "," in value else value

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @property
    def text_columns(self) -> list[str]:
        """`text` as a list."""
        return [self.text] if isinstance(self.text, str) else list(self.text)

    @property
    def more_columns(self) -> list[str]:
        """Further columns that a verb reads."""
        return []


class DataSettings(CorpusSettings):
    """The corpus."""

    columns: list[str] = Field([], description='columns kept beside the vector; ["*"] keeps all')

    @field_validator("columns", mode="before")
    @classmethod
    def _kept_columns(cls, value: Any) -> Any:
        """`a,b` is two columns, a single name a list of one."""
        return _split(value) if isinstance(value, str) else value


class TableSettings(CorpusSettings):
    """The labelled table."""

    text_pair: str | None = Field(
        None, description="column of a second text: the model reads both, as in question and answer"
    )
    label: str = Field("label", description="column of what is to be learnt")
    validation: Places = Field(
        [], description="files, folders or globs with the same columns to evaluate on while training"
    )
    validation_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="instead of data.validation: this share of the rows is held out, drawn by train.seed",
    )

    @model_validator(mode="after")
    def _one_validation(self) -> Self:
        if self.validation and self.validation_share:
            raise ValueError("data.validation and data.validation_share exclude each other; give one of them")
        return self

    @property
    def validation_paths(self) -> list[str]:
        """`validation` as a list."""
        return [self.validation] if isinstance(self.validation, str) else list(self.validation)


class ChunkSettings(Settings):
    """Long documents as overlapping windows."""

    size: int | None = Field(
        None,
        ge=1,
        description="tokens of a window, special ones not counted; default: no windows, long texts are cut",
    )
    overlap: int = Field(0, ge=0, description="tokens that neighbouring windows share")
    combine: Literal["none", "mean", "max"] = Field(
        "none", description="none: a row per window; mean, max: one vector per document"
    )

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.size is not None and self.overlap >= self.size:
            raise ValueError(f"chunk.overlap={self.overlap} must be smaller than chunk.size={self.size}")
        if self.size is None and (self.overlap or self.combine != "none"):
            raise ValueError("chunk.overlap and chunk.combine need chunk.size")
        return self


class OutputSettings(Settings):
    """The folder of vectors."""

    path: Place = Field("", description="folder to write, local or s3:// gs:// ...; required")
    dtype: Literal["float32", "float16", "int8", "binary"] = Field(
        "float32", description="of the stored vectors; the scale of int8 is in the metadata"
    )
    rows_per_shard: int = Field(
        4096, ge=1, description="rows of one output file at most; what a crash can cost"
    )
    on_change: Literal["refuse", "replace"] = Field(
        "refuse", description="an input file changed or vanished: refuse to run, or redo that file"
    )
    max_rejects: int | float | None = Field(
        None, ge=0, description="stop when more rows are rejected: a count, or a share below 1"
    )


class WorkersSettings(Settings):
    """The encoder processes."""

    count: int | list[int] | Literal["auto"] = Field(
        "auto",
        description="encoder processes, or [min, max] to autoscale; auto: as many as the machine feeds",
    )
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="GPUs of one process; auto: 1 where the cluster has any, else 0"
    )
    cpus: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="CPUs and compute threads of one process"
    )
    labels: dict[str, str] = Field(
        {},
        description='labels of the nodes they run on, as in {"ray.io/accelerator-type": "H100"}; a value may be !x, in(x,y)',
    )
    reader_labels: dict[str, str] = Field(
        {}, description="labels of the nodes where texts are read and tokenized; default: any node"
    )
    wait: float = Field(
        0,
        ge=0,
        description="seconds that an autoscaler may take to bring the first nodes; 0: the cluster does not grow",
    )

    @field_validator("labels", "reader_labels")
    @classmethod
    def _as_ray_selects(cls, value: dict[str, str]) -> dict[str, str]:
        """What Ray would refuse in a worker is refused here."""
        for key, wanted in value.items():
            if not re.fullmatch(r"!?(in\(\s*[\w.-]+(\s*,\s*[\w.-]+)*\s*\)|[\w.-]+)", wanted):
                raise ValueError(f"{key}: {wanted!r} is not a label: give x, !x, in(x,y) or !in(x,y)")
        return value

    @field_validator("count")
    @classmethod
    def _a_range(cls, value: Any) -> Any:
        low_high = value if isinstance(value, list) else [1, 1] if value == "auto" else [value, value]
        if len(low_high) != 2 or not 1 <= low_high[0] <= low_high[1]:
            raise ValueError(f"workers.count={value} must be a positive number or [min, max]")
        return value


class TokenizerSettings(Settings):
    """The tokenizer that texts become ids with."""

    name: ModelName = Field(
        "",
        description="folder or Hugging Face hub name of a model or tokenizer, or a folder with a vocab.txt; required",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")


class PrepareSettings(Settings):
    """How documents become instances to train on."""

    objective: Literal["nsp", "sop", "full", "document"] = Field(
        "nsp",
        description="nsp: pairs, half with a random second part; sop: pairs, half swapped; full: sentences packed "
        "across documents; document: a document a row, long ones split",
    )
    max_length: int = Field(128, ge=8, description="tokens of an instance, special ones included")
    sentences: str = Field(
        "en", description='language code whose rules find the sentences, or "lines" for a sentence a line'
    )
    duplicates: int = Field(1, ge=1, description="passes over the corpus with other random draws (nsp)")
    short_probability: float = Field(
        0.1, ge=0, le=1, description="share of documents with shorter pairs (nsp, sop)"
    )
    seed: int = Field(12345, ge=0, description="of all random draws")
    min_chars: int = Field(0, ge=0, description="a shorter document is rejected")
    max_repeated: float = Field(
        1.0, ge=0, le=1, description="reject a document when more than this share of its lines repeat others"
    )
    deduplicate: bool = Field(False, description="reject a document whose text is that of an earlier one")
    compatible: bool = Field(
        False,
        description="exactly the instances and masks of google-research/bert's create_pretraining_data.py, for each "
        "file of sentences (data.format=documents; a sentence a line, documents apart by an empty line)",
    )
    mask_probability: float = Field(0.15, gt=0, lt=1, description="share of tokens to predict (compatible)")
    max_predictions: int = Field(20, ge=1, description="tokens to predict at most (compatible)")
    whole_words: bool = Field(False, description="mask the pieces of a word together (compatible)")


class VocabularySettings(Settings):
    """The tokenizer to train: WordPiece, as BERT's."""

    size: int = Field(30_522, ge=300, description="tokens, special ones included; at most")
    lowercase: bool = Field(True, description="fold case and strip accents")
    min_frequency: int = Field(2, ge=1, description="how often a pair of pieces must occur to be joined")
    max_length: int = Field(512, ge=8, description="what the tokenizer says is the longest input")


class TokensOutput(Settings):
    """The folder of token shards."""

    path: Place = Field("", description="folder to write, local or s3:// gs:// ...; required")
    rows_per_shard: int = Field(4096, ge=1, description="documents of one output file at most")
    on_change: Literal["refuse", "replace"] = Field(
        "refuse", description="an input file changed or vanished: refuse to run, or redo that file"
    )
    max_rejects: int | float | None = Field(
        None, ge=0, description="stop when more documents are rejected: a count, or a share below 1"
    )


class SearchSettings(Settings):
    """What to look for in a folder of vectors."""

    query: str | list[str] = Field([], description="text(s) to search for")
    vectors: str | None = Field(None, description="query vectors instead of text: a .npy or Parquet file")
    k: int = Field(10, ge=1, description="hits a query")
    filter: str | None = Field(None, description="on kept columns: \"package == 'gzip' and year >= 2020\"")
    format: Literal["table", "json"] = Field("table", description="how hits are printed")


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")]
