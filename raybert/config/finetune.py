"""Settings of fine-tuning: a pretrained encoder, a labelled table, a task, and the levers."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raybert.config.core import Settings
from raybert.config.groups import TableSettings, WorkersSettings
from raybert.config.levers import (
    AdapterSettings,
    AdversarialSettings,
    FreezeSettings,
    RegularizeSettings,
    Share,
)
from raybert.config.pair_tasks import RetrievalSettings, SelectionSettings, SimilaritySettings
from raybert.config.paths import ModelName, Place
from raybert.config.several import SeveralSettings
from raybert.config.tasks import (
    AnswersSettings,
    ClassificationSettings,
    EntitiesSettings,
    GenerationSettings,
    RelationsSettings,
)
from raybert.config.training import Count, LoopSettings


class FinetuneModelSettings(Settings):
    """The encoder to begin with."""

    name: ModelName = Field(
        "", description="folder or Hugging Face hub name of the model to begin with; required"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    max_length: int | None = Field(
        None, ge=3, description="tokens of a row, special ones included; default: what the model takes"
    )
    dropout: Share | None = Field(
        None, description="activations set to zero in training; default: the model's"
    )
    attention_dropout: Share | None = Field(
        None,
        description="attention weights set to zero in training; default: the model's; 0 is much faster on a GPU",
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


TaskSettings = (
    ClassificationSettings
    | EntitiesSettings
    | RelationsSettings
    | AnswersSettings
    | SimilaritySettings
    | RetrievalSettings
    | SelectionSettings
    | GenerationSettings
    | SeveralSettings
)


class FinetuneEvaluateSettings(Settings):
    """Evaluation on the validation rows."""

    every: int | None = Field(
        None,
        ge=0,
        description="steps between evaluations, each saved, and one at the end; default: an epoch; 0: none",
    )
    metric: str = Field(
        "auto",
        description="figure by which a model is better; auto: the task's own; loss is better when lower",
    )
    patience: Count | None = Field(
        None,
        description="evaluations in a row without a better one after which the run stops; default: it goes on",
    )
    export: Literal["best", "last"] = Field(
        "best", description="which model is the finished one; best needs validation rows"
    )


class FinetuneTrainSettings(LoopSettings):
    """How the model is trained."""

    steps: Count | None = Field(None, description="updates of the run, instead of epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the rows; default: 3")
    batch_size: Count = Field(32, description="rows of one update, over all workers")
    lr: float = Field(5e-5, gt=0, description="highest learning rate")
    warmup: float = Field(0.1, ge=0, description="steps in which the learning rate rises; below 1 a share")
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="each layer learns at so many times the rate of the one above; 1: all alike",
    )
    seed: int = Field(0, ge=0, description="of new weights, the order of the rows and dropout")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [],
        description="several runs, one for each seed, in output.path/seed-N; mean and deviation are reported",
    )
    zero: Literal[0, 1, 2, 3] = Field(
        0,
        description="DeepSpeed ZeRO: over the workers cut up 1 optimizer state, 2 gradients too, 3 weights too",
    )
    on_spike: Literal["stop", "rewind", "ignore"] = Field(
        "ignore", description="rewind: back to the last good checkpoint, on to other batches"
    )
    evaluate: FinetuneEvaluateSettings = Field(default_factory=FinetuneEvaluateSettings)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("train.steps and train.epochs exclude each other; give one of them")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"train.seeds={self.seeds} names a seed twice")
        return self


class FinetuneOutput(Settings):
    """Where the run lies."""

    path: Place = Field(
        "", description="folder of the run and the finished model, local or s3:// gs:// ...; required"
    )
    max_rejects: int | float | None = Field(
        None, ge=0, description="stop when more rows are rejected: a count, or a share below 1"
    )


class FinetuneConfig(Settings):
    """raybert finetune: a pretrained encoder and a labelled table in, a model of the task out."""

    model: FinetuneModelSettings = Field(default_factory=FinetuneModelSettings)
    data: TableSettings = Field(default_factory=TableSettings)
    task: TaskSettings = Field(default_factory=ClassificationSettings, discriminator="name")
    freeze: FreezeSettings = Field(default_factory=FreezeSettings)
    adapter: AdapterSettings = Field(default_factory=AdapterSettings)
    adversarial: AdversarialSettings = Field(default_factory=AdversarialSettings)
    regularize: RegularizeSettings = Field(default_factory=RegularizeSettings)
    output: FinetuneOutput = Field(default_factory=FinetuneOutput)
    workers: WorkersSettings = Field(default_factory=WorkersSettings)
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="tokens in one packed forward pass of one worker; auto: 4096 on a CPU, 32768 on a GPU",
    )
    train: FinetuneTrainSettings = Field(default_factory=FinetuneTrainSettings)
    track: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"], description="where curves are shown beside the run's own: tensorboard, wandb, mlflow"
    )
    dry_run: bool = Field(False, description="print the resolved settings and the plan; write nothing")

    @field_validator("task", mode="before")
    @classmethod
    def _classification_unless_named(cls, value: Any) -> Any:
        return {"name": "classification", **value} if isinstance(value, dict) else value
