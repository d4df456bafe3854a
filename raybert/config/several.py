"""Settings of several tasks at once: a table and a task each, and how often each has its turn."""

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raybert.config.core import Settings, describe, renamed
from raybert.config.groups import TableSettings
from raybert.config.tasks import (
    AnswersSettings,
    ClassificationSettings,
    EntitiesSettings,
    RelationsSettings,
)

_NAME = re.compile(r"\w+", re.ASCII)


class MemberSettings(Settings):
    """One of several tasks."""

    task: ClassificationSettings | EntitiesSettings | RelationsSettings | AnswersSettings = Field(
        default_factory=ClassificationSettings, discriminator="name"
    )
    data: TableSettings = Field(default_factory=TableSettings)
    weight: float = Field(1.0, gt=0, description="factor of the loss of this task's batches")

    @field_validator("task", mode="before")
    @classmethod
    def _classification_unless_named(cls, value: Any) -> Any:
        return {"name": "classification", **value} if isinstance(value, dict) else value


class SeveralSettings(Settings):
    """Several tasks at once: one encoder, which learns from all, and a head a task."""

    name: Literal["several"] = Field("several", description="the task")
    temperature: float = Field(
        1.0,
        ge=1,
        description="a task has its turn in proportion to rows^(1/temperature); 1: as often as its rows ask; "
        "a large one: all alike",
    )
    tasks: dict[str, MemberSettings] = Field(
        {}, description="the tasks by name, each {task, data, weight}; the finished models are named so"
    )

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if len(self.tasks) < 2:
            raise ValueError(
                "task.tasks needs two tasks or more, each as in task.tasks.NAME.data.path=...; one alone is a task.name"
            )
        for name in self.tasks:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"task.tasks: {name!r} becomes the name of a folder and of settings; take letters, digits and _"
                )
        return self


def name_settings(message: str, member: str) -> str:
    """A message about a member's own settings, `data.path` say, with their names in the whole tree."""
    keys = [key for key, _, _ in describe(MemberSettings)]
    return renamed(message, f"task.tasks.{member}.", keys)
