"""Settings of examining a cluster."""

from typing import Literal

from pydantic import Field

from raybert.config.core import Settings
from raybert.config.finetune import FinetuneConfig
from raybert.config.predicting import EvaluateConfig, PredictConfig
from raybert.config.serving import ServeConfig
from raybert.config.training import PretrainConfig
from raybert.config.verbs import EmbedConfig, PrepareConfig

JOBS: dict[str, type[Settings]] = {
    "embed": EmbedConfig,
    "prepare": PrepareConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "serve": ServeConfig,
}
"""The verbs that work on a cluster, with their settings."""


class DoctorSettings(Settings):
    """The examination."""

    verb: Literal[tuple(JOBS)] | None = Field(  # type: ignore[valid-type]
        None,
        description=f"what the other settings are for: {', '.join(JOBS)}; default: the verb they fit, or that the name "
        "of the config file begins with",
    )
    format: Literal["table", "json"] = Field("table", description="how the findings are printed")
    timeout: float = Field(
        60.0, gt=0, description="seconds that a node may take for one check, before it has failed"
    )
    hub: bool = Field(
        False, description="ask the Hugging Face hub for a model that a node lacks; false: use no network"
    )


class DoctorConfig(Settings):
    """raybert doctor: is this machine or cluster fit for the job?"""

    doctor: DoctorSettings = Field(default_factory=DoctorSettings)
    job: Settings | None = Field(
        None,
        description="all other words are the settings of the job, as its verb takes them: model.name=... data.path=...; "
        "without any the cluster alone is examined",
    )
