"""Settings of pretraining."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raybert.config.core import Settings
from raybert.config.groups import WorkersSettings
from raybert.config.paths import PATH, ModelName, Place

Count = Annotated[int, Field(ge=1)]


class PretrainModelSettings(Settings):
    """The model: a checkpoint to go on from, or the shape of a new one."""

    name: ModelName = Field(
        "", description="folder or hub name of a model to go on from; default: a new one of the shape below"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    family: Literal["bert", "roberta", "electra", "distilbert"] = Field(
        "bert", description="of a new model; pairs of segments need bert"
    )
    layers: Count = Field(12, description="of a new model")
    hidden: Count = Field(768, description="width of a new model")
    heads: Count = Field(12, description="attention heads of a new model; they divide its width")
    intermediate: Count | None = Field(
        None, description="width inside of a new model's layers; default: 4 x hidden"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="of a new model: activations set to zero in training")
    attention_dropout: float = Field(
        0.1, ge=0, lt=1, description="of a new model: attention weights; 0 is much faster on a GPU"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"model.heads={self.heads} must divide model.hidden={self.hidden}")
        return self


class TokensSettings(Settings):
    """The token shards that `raybert prepare` made."""

    path: Place = Field("", description="folder of token shards, local or s3:// gs:// ...; required")


class RunSettings(Settings):
    """Where the run lies."""

    path: Place = Field(
        "", description="folder of the run and the finished model, local or s3:// gs:// ...; required"
    )


class CheckpointSettings(Settings):
    """When the run is saved; it goes on from the newest after a crash, on any number of workers."""

    steps: Count | None = Field(None, description="every so many steps")
    minutes: float = Field(10, gt=0, description="and whenever so many minutes have passed")
    keep: Count = Field(2, description="newest ones that are kept, beside the best")


class EvaluateSettings(Settings):
    """Held-out loss and accuracy."""

    every: int = Field(
        1000, ge=0, description="steps between evaluations, each saved, and one at the end; 0: none"
    )
    share: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="of the token shards held out, at least one where there are two; 0: none",
    )
    batches: Count = Field(64, description="packed batches of an evaluation at most")


class SpikeSettings(Settings):
    """What a loss spike is."""

    factor: float = Field(1.5, gt=1, description="a loss so many times the running median is too high")
    patience: Count = Field(5, description="so many steps in a row too high are a spike")
    window: Count = Field(
        100, description="steps of the running median; there are no spikes before half of them"
    )
    rewinds: int = Field(3, ge=0, description="rewinds of one run before it stops all the same")


class PhaseSettings(Settings):
    """One part of a run, with a schedule of its own."""

    steps: Count = Field(description="updates of the phase")
    path: Annotated[str | None, PATH] = Field(None, description="its token shards; default: data.path")
    lr: float | None = Field(None, gt=0, description="default: train.lr")
    global_batch_tokens: Count | None = Field(None, description="default: train.global_batch_tokens")


class LoopSettings(Settings):
    """What pretraining and fine-tuning have in common."""

    steps: Count | None = Field(None, description="updates of the run")
    epochs: float | None = Field(None, gt=0, description="passes over the data, instead of steps")
    lr: float = Field(1e-4, gt=0, description="highest learning rate")
    schedule: Literal["linear", "cosine", "wsd", "constant"] = Field(
        "linear", description="learning rate after the warmup; wsd is constant, then falls over train.decay"
    )
    warmup: float = Field(0.01, ge=0, description="steps in which the learning rate rises; below 1 a share")
    decay: float = Field(0.1, ge=0, description="steps in which wsd falls at the end; below 1 a share")
    final: float = Field(0.0, ge=0, le=1, description="last learning rate, as a share of the highest")
    optimizer: Literal["adamw", "lamb"] = Field("adamw", description="lamb is for very large batches")
    weight_decay: float = Field(0.01, ge=0, description="of matrices; biases and norms are not decayed")
    clip: float | None = Field(1.0, gt=0, description="bound of the gradient's norm; null: none")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of computing; auto: bfloat16 where the hardware has it, else float32"
    )
    seed: int = Field(0, ge=0, description="of new weights, the order of the data, masks and dropout")
    padded: bool = Field(False, description="compute padded batches, for comparison; packed ones are faster")
    zero: Literal[0, 1, 2, 3] = Field(
        1,
        description="DeepSpeed ZeRO: over the workers cut up 1 optimizer state, 2 gradients too, 3 weights too",
    )
    offload: bool = Field(False, description="optimizer state in the host's memory; needs g++ and ninja")
    recompute: bool = Field(
        False, description="compute activations again instead of keeping them: less memory"
    )
    on_spike: Literal["stop", "rewind", "ignore"] = Field(
        "stop", description="rewind: back to the last good checkpoint, on to other batches"
    )
    spike: SpikeSettings = Field(default_factory=SpikeSettings)
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    log_every: Count = Field(10, description="steps between lines of progress")
    restarts: int = Field(5, ge=0, description="times that a run is started again after a worker was lost")


class TrainSettings(LoopSettings):
    """How the model is trained."""

    steps: Count | None = Field(None, description="updates of the run; this or epochs is required")
    phases: list[PhaseSettings] = Field(
        [],
        description="instead of steps: parts that follow each other, each {steps, path, lr, global_batch_tokens}",
    )
    global_batch_tokens: Count = Field(65536, description="tokens of one update, over all workers")
    mask_probability: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are predicted")
    mask: Literal["token", "word", "span"] = Field("token", description="what is chosen to be predicted")
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [self.steps is not None, self.epochs is not None, bool(self.phases)]
        if sum(given) > 1:
            raise ValueError(
                "train.steps, train.epochs and train.phases exclude each other; give one of them"
            )
        return self


class PretrainConfig(Settings):
    """raybert pretrain: token shards in, a pretrained model out, on any number of workers."""

    model: PretrainModelSettings = Field(default_factory=PretrainModelSettings)
    data: TokensSettings = Field(default_factory=TokensSettings)
    output: RunSettings = Field(default_factory=RunSettings)
    workers: WorkersSettings = Field(default_factory=WorkersSettings)
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="tokens in one packed forward pass of one worker; auto: 4096 on a CPU, 32768 on a GPU",
    )
    train: TrainSettings = Field(default_factory=TrainSettings)
    track: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"], description="where curves are shown beside the run's own: tensorboard, wandb, mlflow"
    )
    dry_run: bool = Field(False, description="print the resolved settings and the plan; write nothing")
