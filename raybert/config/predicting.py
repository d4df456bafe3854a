"""Settings of predicting with a model that has a head, and of evaluating one."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import Field, create_model, model_serializer

from raybert.config.core import Settings
from raybert.config.finetune import TaskSettings
from raybert.config.groups import CorpusSettings, DataSettings, TokensOutput, WorkersSettings
from raybert.config.paths import MODEL, ModelName, Place
from raybert.config.several import SeveralSettings

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


TASKS: Mapping[str, type[Settings]] = {
    kind.model_fields["name"].default: kind for kind in get_args(TaskSettings) if kind is not SeveralSettings
}
"""The settings of every task that a model can be for, by its name: of several tasks each has a model."""


class _HeadTask(Settings):
    """What the head is for. The model's own settings hold but for those given here."""

    name: Literal["auto", *TASKS] = Field(  # type: ignore[valid-type]
        "auto",
        description="the task; auto: as the model's config.json says. Its other settings, too, are those of the model "
        "where they are not given",
    )

    @property
    def given(self) -> dict[str, Any]:
        """The settings that were given, without the name."""
        return {
            key: getattr(self, key)
            for key in type(self).model_fields
            if key in self.model_fields_set - {"name"}
        }

    @model_serializer(mode="wrap")
    def _given_ones(self, handler: Any) -> dict[str, Any]:
        """null may be given: only what was is told."""
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set | {"name"}}


def _of_all_tasks() -> dict[str, Any]:
    """A field for every setting of a task, of any type that it has there; the task's own settings check it."""
    found: dict[str, tuple[list[Any], str, list[str]]] = {}
    for name, kind in TASKS.items():
        for key, field in kind.model_fields.items():
            if key != "name":
                types, _, tasks = found.setdefault(key, ([], field.description or "", []))
                types.append(field.annotation)
                tasks.append(name)
    return {
        key: (Union[*types, None], Field(None, description=f"{text} ({', '.join(tasks)})"))
        for key, (types, text, tasks) in found.items()
    }


HeadTaskSettings = create_model(
    "HeadTaskSettings", __base__=_HeadTask, __module__=__name__, __doc__=_HeadTask.__doc__, **_of_all_tasks()
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
    """raybert predict: a corpus in, what the model of a task says of every row exactly once in Parquet."""

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
    task: HeadTaskSettings = Field(default_factory=HeadTaskSettings)
    output: EvaluateOutput = Field(default_factory=EvaluateOutput)
    workers: WorkersSettings = Field(default_factory=WorkersSettings)
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="tokens in one forward pass; auto: 1024 on a CPU, 32768 on a GPU"
    )
