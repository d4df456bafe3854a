"""Settings of how a task is trained, beside the plain way: what is frozen, added, attacked, held back."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raybert.config.core import Settings
from raybert.config.paths import Places
from raybert.config.training import Count

Share = Annotated[float, Field(ge=0, lt=1)]


class FreezeSettings(Settings):
    """What is not trained."""

    layers: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        0,
        description="the lowest so many layers stay as they are; all: only the head is trained",
    )
    embeddings: bool = Field(False, description="the embeddings stay as they are")
    gradual: bool = Field(
        False, description="begin with the head alone, one layer more from the top each epoch (ULMFiT)"
    )


# what means something for each kind
_ADAPTERS = {
    "none": (),
    "lora": ("rank", "alpha", "dropout"),
    "adalora": ("rank", "alpha", "dropout", "target_rank"),
    "prefix": ("tokens",),
    "bottleneck": ("width", "dropout"),
    "bitfit": (),
}


class AdapterSettings(Settings):
    """A few new weights are trained instead of all."""

    name: Literal["none", "lora", "adalora", "prefix", "bottleneck", "bitfit"] = Field(
        "none",
        description="lora and adalora are merged into the finished model, the others saved beside its base",
    )
    rank: Count = Field(8, description="of the new matrices (lora); at the start (adalora)")
    alpha: float = Field(16.0, gt=0, description="new matrices count alpha / rank times (lora, adalora)")
    dropout: Share = Field(0.0, description="of what the new weights see (lora, adalora, bottleneck)")
    target_rank: Count = Field(4, description="mean rank at the end (adalora)")
    tokens: Count = Field(20, description="new keys and values in front of every layer's (prefix)")
    width: Count = Field(64, description="of the new layers (bottleneck)")

    @model_validator(mode="after")
    def _refuse_unused(self) -> Self:
        _refuse_others(self, "adapter", _ADAPTERS)
        return self


# What each method has, and what it is unless given: from the papers or their code. Papers that take epsilon 1 normalise
# embeddings, code that takes it divides by the norm of a whole batch's gradient. In BERT's embeddings 1 is the norm of a
# word: a row that may lose its decisive one teaches nothing. 0.2 is a row's part of norm 1 in a batch of 32.
_ADVERSARIAL: dict[str, dict[str, float]] = {
    "none": {},
    "fgm": {"epsilon": 0.2},
    "pgd": {"epsilon": 0.2, "alpha": 0.1, "steps": 3},
    "freelb": {"epsilon": 0.0, "alpha": 0.1, "steps": 2, "init": 0.6},
    "smart": {"epsilon": 1e-2, "alpha": 1e-3, "steps": 1, "init": 1e-5, "weight": 1.0},
}


class AdversarialSettings(Settings):
    """Train on inputs that were changed, at the word embeddings, so that the loss is higher."""

    name: Literal["none", "fgm", "pgd", "freelb", "smart"] = Field(
        "none",
        description="how the change is found; smart adds the divergence from the unchanged outputs to the loss",
    )
    epsilon: float | None = Field(
        None,
        ge=0,
        description="size of the change at most: norm of a row's, default 0.2 (fgm, pgd; a word's own norm is about 1), "
        "0 no bound (freelb); largest number of a token's, default 0.01 (smart)",
    )
    alpha: float | None = Field(
        None,
        gt=0,
        description="norm of one step, default 0.1 (pgd, freelb); times the gradient, default 0.001 (smart)",
    )
    steps: Count | None = Field(
        None, description="steps of the search; default 3 (pgd), 2 (freelb), 1 (smart)"
    )
    init: float | None = Field(
        None,
        ge=0,
        description="size of the random change to begin with; default 0.6 (freelb), 0.00001 (smart)",
    )
    weight: float | None = Field(None, gt=0, description="of the divergence in the loss; default 1 (smart)")

    @model_validator(mode="after")
    def _fill_in(self) -> Self:
        known = _ADVERSARIAL[self.name]
        _refuse_others(self, "adversarial", _ADVERSARIAL)
        for key, value in known.items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        if self.name in ("fgm", "pgd", "smart") and not self.epsilon:
            raise ValueError(
                f"adversarial.epsilon=0 changes nothing with adversarial.name={self.name}; raise it"
            )
        return self


class RegularizeSettings(Settings):
    """What keeps the model from learning the rows by heart, or from forgetting what it knew."""

    r_drop: float = Field(
        0.0,
        ge=0,
        description="weight of the divergence of two passes with different dropout (R-Drop); 0: one pass",
    )
    label_smoothing: Share = Field(0.0, description="share of the truth that is spread over all labels")
    ewc: float = Field(
        0.0,
        ge=0,
        description="strength with which weights are held that an earlier task needs (EWC); 0: none; to be searched, "
        "from 1 to 1e6",
    )
    ewc_data: Places = Field(
        [],
        description="rows of the earlier task, with the same columns and labels: files, folders or globs (ewc)",
    )
    ewc_rows: Count = Field(1000, description="so many of them are looked at, drawn by train.seed (ewc)")

    @model_validator(mode="after")
    def _ewc_whole(self) -> Self:
        if bool(self.ewc) != bool(self.ewc_data):
            raise ValueError(
                "regularize.ewc and regularize.ewc_data need one another: how much is held, and the rows of the earlier "
                "task; give both or none"
            )
        return self

    @property
    def ewc_paths(self) -> list[str]:
        """`ewc_data` as a list."""
        return [self.ewc_data] if isinstance(self.ewc_data, str) else list(self.ewc_data)


def _refuse_others(settings: Any, group: str, known: Any) -> None:
    """Settings of another kind are a mistake, unless they say what would hold anyway."""
    fields = type(settings).model_fields
    for key in settings.model_fields_set - {"name", *known[settings.name]}:
        if getattr(settings, key) != fields[key].default:
            kinds = [name for name, keys in known.items() if key in keys]
            raise ValueError(
                f"{group}.{key} means nothing with {group}.name={settings.name}; it is of {', '.join(kinds)}"
            )
