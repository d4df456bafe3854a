"""Settings of predicting with a model that has a head, and of evaluating one."""

from typing import Annotated, Literal

from pydantic import Field

from raybert.config.core import Settings
from raybert.config.groups import CorpusSettings, DataSettings, TokensOutput, WorkersSettings
from raybert.config.paths import MODEL, ModelName, Place

_PAIR = "column of a second text: the model reads both, as in question and answer"


class HeadModelSettings(Settings):
    """The model, with a head for the task."""

    name: ModelName = Field(
        "",
        description="folder or Hugging Face hub name of a model with a head, as raybert finetune makes; required",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    max_length: int | None = Field(
        None, ge=3, description="tokens of a row, special ones included; default: what the model takes"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of computing; auto: bfloat16 where the hardware has it, else float32"
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class ComparedModelSettings(HeadModelSettings):
    """The model to evaluate, and one to compare it with."""

    before: Annotated[str | None, MODEL] = Field(
        None, description="folder or hub name of a model with the same labels to compare with"
    )


class HeadTaskSettings(Settings):
    """What the head is for."""

    kind: Literal["auto", "single", "multi", "regression"] = Field(
        "auto",
        description="one label a row, any number of them, or a number; auto: as the model's config.json says",
    )


class LabelledTaskSettings(HeadTaskSettings):
    """What the head is for, and how its labels are written."""

    separator: str = Field(
        ",", min_length=1, description="between the labels of a row where they are text (multi)"
    )


class PredictDataSettings(DataSettings):
    """The texts to predict for."""

    columns: list[str] = Field([], description='columns kept beside the prediction; ["*"] keeps all')
    text_pair: str | None = Field(None, description=_PAIR)

    @property
    def more_columns(self) -> list[str]:
        """The second text."""
        return [self.text_pair] if self.text_pair else []


class EvaluateDataSettings(CorpusSettings):
    """The labelled table."""

    text_pair: str | None = Field(None, description=_PAIR)
    label: str = Field("label", description="column of the true labels, or numbers")


class PredictOutput(TokensOutput):
    """The folder of predictions."""

    rows_per_shard: int = Field(4096, ge=1, description="rows of one output file at most")
    max_rejects: int | float | None = Field(
        None, ge=0, description="stop when more rows are rejected: a count, or a share below 1"
    )


class EvaluateOutput(Settings):
    """The report."""

    path: Place = Field("", description="folder to write, local or s3:// gs:// ...; required")


class PredictConfig(Settings):
    """raybert predict: a corpus in, a label (or labels, or a number) for every row exactly once in Parquet."""

    model: HeadModelSettings = Field(default_factory=HeadModelSettings)
    data: PredictDataSettings = Field(default_factory=PredictDataSettings)
    task: HeadTaskSettings = Field(default_factory=HeadTaskSettings)
    output: PredictOutput = Field(default_factory=PredictOutput)
    workers: WorkersSettings = Field(default_factory=WorkersSettings)
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="tokens in one forward pass; auto: 1024 on a CPU, 32768 on a GPU"
    )
    dry_run: bool = Field(False, description="print the settings and the plan; write nothing")


class EvaluateConfig(Settings):
    """raybert evaluate: one or two models on a labelled table, with a report."""

    model: ComparedModelSettings = Field(default_factory=ComparedModelSettings)
    data: EvaluateDataSettings = Field(default_factory=EvaluateDataSettings)
    task: LabelledTaskSettings = Field(default_factory=LabelledTaskSettings)
    output: EvaluateOutput = Field(default_factory=EvaluateOutput)
    workers: WorkersSettings = Field(default_factory=WorkersSettings)
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="tokens in one forward pass; auto: 1024 on a CPU, 32768 on a GPU"
    )
