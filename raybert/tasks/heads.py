"""What a model folder says of its head: the task, its settings and labels. Read from config.json, without torch.

A folder that raybert made says it under the key `raybert`: {"task", "settings", "labels", "max_length"}. Others are known
by their architecture.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import create_model

from raybert.config import Settings, load
from raybert.config.predicting import TASKS, HeadTaskSettings
from raybert.tasks.tags import label_tags

KEY = "raybert"
"""Where config.json says what raybert needs to know."""

TRAINED = {"classification": ("kind",), "relations": ("markers",)}
"""Settings of tasks that belong to a model: no user can change them when it is trained."""

_BY_ARCHITECTURE = {
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "entities",
    "ForQuestionAnswering": "answers",
    "EncoderDecoderModel": "generation",
}
_KINDS = {
    "single_label_classification": "single",
    "multi_label_classification": "multi",
    "regression": "regression",
}
_LABELLED = ("classification", "entities", "relations", "answers")  # config.json names their labels
_NEED_A_HEAD = (*_LABELLED, "generation")
_OFFSET_FAMILIES = ("roberta", "xlm-roberta", "camembert", "mpnet")  # count positions from padding_idx + 1
_LONGEST = 8192  # of a model that takes any length, or more than anybody's rows have
_UNLIMITED = 10**9  # transformers writes 1e30 where it does not know


@dataclass(frozen=True)
class Head:
    """What a model predicts.

    Attributes:
        task: of `raybert.tasks.known`.
        settings: of the task.
        labels: in the order of the model's outputs; none for a task that has none.
        max_length: tokens of a row that the model was trained with; None where its folder does not say.
    """

    task: str
    settings: Any
    labels: list[str]
    max_length: int | None = None


def read_head(shape: Mapping[str, Any], where: str, asked: HeadTaskSettings | None = None) -> Head:
    """The head that a config.json describes.

    Args:
        shape: the content of config.json.
        where: the model's name, for errors.
        asked: the user's settings of the task, which come before those of the folder. A folder that names no task, as of
            a plain encoder, may be used for the task that `asked` names.

    Raises:
        ValueError: another task or another kind of head than asked for, a setting that the task does not have, labels
            that do not name every output once, or that are none of the task.
    """
    asked = asked or HeadTaskSettings()
    recorded = _recorded(shape, where)
    task = _task(shape, where, asked.name, recorded.get("task"))
    labels = list(recorded.get("labels") or [])
    if task in _LABELLED:
        labels = labels_of(shape, where)
    given = dict(recorded.get("settings") or {})
    if task == "classification":
        given = {"kind": _kind(shape, labels), **given}
    if task == "relations" and "relation_markers" in shape:
        given["markers"] = shape["relation_markers"]
    _refuse_other(task, asked.given, given if recorded else {}, where)
    settings = task_settings(task, {**given, **asked.given})
    _check_labels(task, settings, labels, where)
    return Head(task, settings, labels, recorded.get("max_length"))


def task_of(shape: Mapping[str, Any], where: str) -> str | None:
    """The task that a config.json says its model is for; None for an encoder without a head.

    Raises ValueError for a task that this raybert does not know.
    """
    return _recorded(shape, where).get("task") or _by_architecture(shape)


def record_head(
    folder: Path, settings: Any, *, max_length: int | None = None, labels: Sequence[str] = ()
) -> None:
    """Write into a model folder what `read_head` reads: into its config.json, or into the record of an adapter.

    tokenizer_config.json gets the length too, so that other readers cut as raybert does.

    Args:
        folder: on this machine.
        settings: of the task; their `name` is the task.
        max_length: tokens of a row that the model was trained with.
        labels: of a task whose labels config.json does not name.
    """
    entry: dict[str, Any] = {
        "task": settings.name,
        "settings": settings.model_dump(mode="json", exclude={"name"}),
    }
    if settings.name not in _LABELLED and labels:
        entry["labels"] = list(labels)
    if max_length is not None:
        entry["max_length"] = max_length
        _change(folder / "tokenizer_config.json", "model_max_length", max_length)
    for name in ("config.json", "raybert_adapter.json"):
        if _change(folder / name, KEY, entry):
            return
    raise FileNotFoundError(f"{folder} has no config.json")


def task_settings(task: str, values: Mapping[str, Any]) -> Any:
    """The settings of a task. Raises ValueError, one line, for a key that the task does not have, or a value."""

    # in a group, so that errors name the setting as the user does
    group = create_model("Group", __base__=Settings, task=(TASKS[task], ...))
    return load(group, settings={"task": {"name": task, **values}}).task


def _change(path: Path, key: str, value: Any) -> bool:
    """Whether there is such a JSON file to change."""
    if not path.is_file():
        return False
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps({**content, key: value}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return True


def _recorded(shape: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    found = shape.get(KEY) or {}
    if found and (not isinstance(found, Mapping) or found.get("task") not in TASKS):
        raise ValueError(
            f"model.name={where}: its config.json names a task under {KEY!r} that this raybert does not know: "
            f"{str(found)[:80]}"
        )
    return found


def _task(shape: Mapping[str, Any], where: str, asked: str, recorded: str | None) -> str:
    architectures = shape.get("architectures") or []
    found = recorded or _by_architecture(shape)
    is_a = f"is a {architectures[0]}" if architectures else "names no architecture"
    if asked != "auto" and asked != found and (found or asked in _NEED_A_HEAD):
        what = f"is a model for task.name={found}" if found else f"has no head: its config.json {is_a}"
        raise ValueError(
            f"task.name={asked}, but model.name={where} {what}; take another model, or leave task.name out"
        )
    if found or asked != "auto":
        return found or asked
    raise ValueError(
        f"model.name={where}: its config.json {is_a}; a model with a head for a task is needed, as raybert finetune makes "
        f"(for a model without a head: task.name={' or '.join(sorted(TASKS.keys() - set(_NEED_A_HEAD))) or '...'})"
    )


def _by_architecture(shape: Mapping[str, Any]) -> str | None:
    architectures = shape.get("architectures") or []
    for end, task in _BY_ARCHITECTURE.items():
        if any(name.endswith(end) for name in architectures):
            return task
    return "relations" if "relation_markers" in shape else None


def _kind(shape: Mapping[str, Any], labels: Sequence[str]) -> str:
    """As transformers has it: one output is a regression."""
    return _KINDS.get(shape.get("problem_type") or "", "regression" if len(labels) == 1 else "single")


def _refuse_other(task: str, asked: Mapping[str, Any], recorded: Mapping[str, Any], where: str) -> None:
    fields = TASKS[task].model_fields
    if unknown := sorted(asked.keys() - fields.keys()):
        names = ", ".join(name for name in fields if name != "name")
        raise ValueError(
            f"task.{unknown[0]} means nothing with task.name={task}, which is what model.name={where} is for; its "
            f"settings are {names}"
        )
    for key in TRAINED.get(task, ()):
        if key in asked and key in recorded and list(asked[key]) != list(recorded[key]):
            raise ValueError(
                f"task.{key}={asked[key]}, but model.name={where} was trained with {recorded[key]}; leave it out"
            )


def _check_labels(task: str, settings: Any, labels: Sequence[str], where: str) -> None:
    count, wrong = len(labels), ""
    if task == "classification" and settings.kind == "regression" and count != 1:
        wrong = f": a regression has one output, this model {count}"
    elif task == "classification" and settings.kind == "single" and count == 1:
        wrong = " has one output: nothing to choose from; set task.kind"
    elif task == "answers" and count != 2:
        wrong = f": an answer has a start and an end, this model has {count} outputs"
    elif task == "entities":
        try:
            label_tags(labels)
        except ValueError as error:
            wrong = f": {error}"
    if wrong:
        raise ValueError(f"model.name={where}{wrong}")


def labels_of(shape: Mapping[str, Any], where: str) -> list[str]:
    """The labels of a config.json in their order; LABEL_0 ... where it names none, as transformers does.

    Raises ValueError where they are not numbered 0 to n - 1, each once, or where label2id and id2label disagree.
    """
    given = shape.get("label2id")
    names = shape.get("id2label")
    if not given and not names:
        return [f"LABEL_{i}" for i in range(int(shape.get("num_labels", 2)))]
    numbers = _by_number(given or {}, where, "label2id", (lambda item: (item[1], item[0])))
    named = _by_number(names or {}, where, "id2label", (lambda item: item))
    if numbers and named and numbers != named:
        number = next((i for i in sorted(numbers | named) if numbers.get(i) != named.get(i)), 0)
        raise ValueError(
            f"model.name={where}: in its config.json label {number} is {numbers.get(number)!r} in label2id, "
            f"{named.get(number)!r} in id2label; correct one of them"
        )
    found = named or numbers
    return [found[i] for i in range(len(found))]


def _by_number(values: Mapping[str, Any], where: str, key: str, item: Any) -> dict[int, str]:
    pairs = [item(pair) for pair in values.items()]
    try:
        found = {int(number): str(label) for number, label in pairs}
    except (TypeError, ValueError):
        found = {}
    whole = sorted(found) == list(range(len(pairs))) and len(set(found.values())) == len(pairs)
    if not whole:
        raise ValueError(
            f"model.name={where}: {key} in its config.json must name the labels 0 to {len(pairs) - 1}, each once: "
            f"{str(dict(values))[:120]}"
        )
    return found


def longest_input(
    shape: Mapping[str, Any], asked: int | None, limit: float | None, where: str, *, taken: int = 0
) -> int:
    """Tokens of a row: as asked, else what positions and tokenizer (`limit`) allow. A prefix has `taken` some positions.

    Raises ValueError where the model has fewer positions than asked for.
    """
    positions = shape.get("max_position_embeddings")
    if positions is not None and shape.get("model_type") in _OFFSET_FAMILIES:
        positions -= int(shape.get("pad_token_id", 1)) + 1
    positions = positions - taken if positions is not None else None
    if asked is not None:
        if positions is not None and asked > positions:
            raise ValueError(f"model.max_length={asked}, but {where} takes {positions} tokens")
        return asked
    limits = [positions, int(limit) if limit and limit < _UNLIMITED else None]
    return min([_LONGEST, *(found for found in limits if found)])
