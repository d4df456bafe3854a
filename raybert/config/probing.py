"""Settings of the linear probe."""

from typing import Annotated

from pydantic import Field, field_validator

from raybert.config.core import Settings
from raybert.config.paths import PATH, Place

Strength = Annotated[float, Field(gt=0)]


class ProbeDataSettings(Settings):
    """The vectors and their labels."""

    path: Place = Field("", description="folder of vectors that raybert embed wrote; required")
    label: str = Field(
        "", description="kept column that holds the label; numbers with a point: regression; required"
    )
    validation: Annotated[str | None, PATH] = Field(
        None, description="folder of vectors to evaluate on; default: data.share of data.path"
    )
    share: float = Field(
        0.2, gt=0, lt=1, description="of the rows (of each label) evaluated on, not trained on"
    )


class ProbeSettings(Settings):
    """The linear classifier."""

    c: Strength | list[Strength] = Field(
        [0.001, 0.01, 0.1, 1.0, 10.0],
        description="inverse of the strength of the L2 penalty; of several, the best by cross-validation",
    )
    seed: int = Field(0, ge=0, description="of the split and the folds")
    standardize: bool = Field(
        True, description="scale each dimension to mean 0 and deviation 1, as in the training part"
    )

    @field_validator("c")
    @classmethod
    def _some(cls, value: float | list[float]) -> float | list[float]:
        if value == []:
            raise ValueError("probe.c=[] must hold at least one number")
        return value

    @property
    def strengths(self) -> list[float]:
        """`c` as an ascending list without repeats."""
        return sorted(set(self.c)) if isinstance(self.c, list) else [self.c]


class ProbeOutput(Settings):
    """The report and the classifier."""

    path: Place = Field("", description="folder to write, local or s3:// gs:// ...; required")


class ProbeConfig(Settings):
    """raybert probe: a linear classifier on a folder of vectors, with its report."""

    data: ProbeDataSettings = Field(default_factory=ProbeDataSettings)
    probe: ProbeSettings = Field(default_factory=ProbeSettings)
    output: ProbeOutput = Field(default_factory=ProbeOutput)
