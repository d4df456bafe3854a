"""What a model folder says of its head: the task, its settings and labels. Read from config.json, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raybert.config.finetune import ClassificationSettings

_KINDS = {
    "single_label_classification": "single",
    "multi_label_classification": "multi",
    "regression": "regression",
}
_OFFSET_FAMILIES = ("roberta", "xlm-roberta", "camembert", "mpnet")  # count positions from padding_idx + 1
_LONGEST = 8192  # of a model that takes any length, or more than anybody's rows have
_UNLIMITED = 10**9  # transformers writes 1e30 where it does not know


@dataclass(frozen=True)
class Head:
    """A task of `raybert.tasks.known`, its settings, and the labels in the order of the model's outputs."""

    task: str
    settings: ClassificationSettings
    labels: list[str]


def read_head(shape: Mapping[str, Any], where: str, *, kind: str = "auto", separator: str = ",") -> Head:
    """The head that a config.json describes.

    Args:
        shape: the content of config.json.
        where: the model's name, for errors.
        kind: of classification; auto: `problem_type`, else as transformers has it: one output is a regression.

    Raises:
        ValueError: another head, or labels that do not name every output once.
    """
    architectures = shape.get("architectures") or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        has = f"is a {architectures[0]}" if architectures else "names no architecture"
        raise ValueError(
            f"model.name={where}: its config.json {has}; a model with a head for sequence classification is needed, as "
            "raybert finetune makes"
        )
    labels = labels_of(shape, where)
    if kind == "auto":
        kind = _KINDS.get(shape.get("problem_type") or "", "regression" if len(labels) == 1 else "single")
    if kind == "regression" and len(labels) != 1:
        raise ValueError(f"model.name={where}: a regression has one output, this model {len(labels)}")
    if kind == "single" and len(labels) == 1:
        raise ValueError(f"model.name={where} has one output: nothing to choose from; set task.kind")
    return Head("classification", ClassificationSettings(kind=kind, separator=separator), labels)


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


def longest_input(shape: Mapping[str, Any], asked: int | None, limit: float | None, where: str) -> int:
    """Tokens of a row: as asked, else what positions and tokenizer (`limit`) allow.

    Raises ValueError where the model has fewer positions than asked for.
    """
    positions = shape.get("max_position_embeddings")
    if positions is not None and shape.get("model_type") in _OFFSET_FAMILIES:
        positions -= int(shape.get("pad_token_id", 1)) + 1
    if asked is not None:
        if positions is not None and asked > positions:
            raise ValueError(f"model.max_length={asked}, but {where} takes {positions} tokens")
        return asked
    limits = [positions, int(limit) if limit and limit < _UNLIMITED else None]
    return min([_LONGEST, *(found for found in limits if found)])
