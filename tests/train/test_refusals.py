"""Levers that cannot work together, or with a model: each is refused on the driver, with one line."""

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from raybert.config import ConfigError, load
from raybert.config.finetune import FinetuneConfig
from raybert.encoder.adapter_folder import RECORD
from raybert.encoder.loading import quiet_transformers
from raybert.train.task_job import complete_job, prepare_job, refuse_settings
from tests.encoder.tiny import tiny_model
from tests.train.task_tables import task_settings

EWC = {"regularize.ewc": 1.0, "regularize.ewc_data": "earlier.parquet"}
ADALORA = {"adapter.name": "adalora"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("refusals")
    task_settings(found, found / "x")
    for family in ("distilbert", "mpnet", "albert", "modernbert"):
        tiny_model(found / family, family, st=False)
    return found


def driver(folder, changes) -> None:
    """What the driver does before it starts Ray."""
    changes = {key: str(folder / value) if key == "model.name" else value for key, value in changes.items()}
    config = load(FinetuneConfig, settings=task_settings(folder, folder / "x", **changes))
    refuse_settings(config)
    complete_job(prepare_job(config), config, gpu=False, workers=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter.name": "lora", "freeze.layers": 1}, "adapter.name=lora trains nothing but itself"),
        ({"adapter.name": "bitfit", "freeze.gradual": True}, "adapter.name=bitfit trains nothing but itself"),
        ({"adapter.name": "prefix", "task.name": "relations"}, "without the embeddings of task.markers"),
        ({"adapter.name": "bottleneck", "task.name": "relations"}, "without the embeddings of task.markers"),
        ({**ADALORA, "train.zero": 3}, "adapter.name=adalora needs whole matrices, train.zero=3"),
        (
            {"adapter.name": "lora", "task.name": "relations", "train.zero": 3},
            "adapter.name=lora trains the embeddings of task.markers as whole rows, train.zero=3",
        ),
        ({**ADALORA, "adapter.target_rank": 8}, "adapter.target_rank=8 must be below adapter.rank=8"),
        ({**ADALORA, "train.steps": 3}, "adapter.name=adalora needs at least 4 steps"),
        ({"adapter.name": "lora", "adapter.width": 3}, "adapter.width means nothing with adapter.name=lora"),
        ({"adapter.name": "prefix", "model.name": "distilbert"}, "prefix needs a model that takes keys and"),
        ({"adapter.name": "prefix", "model.name": "modernbert"}, "prefix needs a model that takes keys and"),
        ({"adapter.name": "prefix", "model.max_length": 60}, "model.max_length=60, but .* takes 44 tokens"),
        ({"adapter.name": "bottleneck", "model.name": "albert"}, "bottleneck is not known for a albert"),
        ({"adapter.name": "bitfit", "model.name": "modernbert"}, "a modernbert model has none"),
        ({"freeze.layers": 3}, "freeze.layers=3, but the model has 2 layers"),
        ({"freeze.layers": 7, "model.name": "distilbert"}, "freeze.layers=7, but the model has 2 layers"),
        ({"freeze.layers": 1, "model.name": "albert"}, "the layers of albert models share their weights"),
        ({"freeze.gradual": True, "model.name": "albert"}, "the layers of albert models share their weights"),
        ({"train.layer_decay": 0.9, "model.name": "albert"}, "the layers of albert models share"),
        ({"adversarial.name": "fgm", "adversarial.steps": 3}, "adversarial.steps means nothing with"),
        ({"adversarial.name": "pgd", "adversarial.weight": 2}, "adversarial.weight means nothing with"),
        ({"adversarial.name": "smart", "adversarial.epsilon": 0}, "adversarial.epsilon=0 changes nothing"),
        ({"regularize.ewc": 1.0}, "regularize.ewc and regularize.ewc_data need one another"),
        ({"regularize.ewc_data": "x"}, "regularize.ewc and regularize.ewc_data need one another"),
        ({**EWC, "train.zero": 3}, "regularize.ewc needs whole weights, train.zero=3"),
        ({**EWC, "adapter.name": "lora"}, "regularize.ewc holds the weights that adapter.name=lora does not"),
        ({**EWC, "task.kind": "regression"}, "regularize.ewc draws a label of the model"),
        ({**EWC, "task.name": "answers"}, "regularize.ewc draws a label of the model"),
        ({"train.zero": 0, "train.precision": "float16"}, "train.precision=float16 needs the loss scaling"),
        ({"train.zero": 1, "train.optimizer": "lamb"}, "train.optimizer=lamb needs the norm of every whole"),
    ],
)
def test_refused(folder, changes, words):
    if "task.name" in changes:
        changes = {**changes, "model.max_length": None}
    with pytest.raises((ValueError, ConfigError), match=words) as error:
        driver(folder, changes)
    assert len(str(error.value).strip().splitlines()) <= 2
    assert not (folder / "x").exists()


def test_elastic_weights_need_the_head_of_the_earlier_task(folder, tmp_path):
    earlier = {**EWC, "regularize.ewc_data": str(folder / "train.parquet")}
    with pytest.raises(ValueError, match="needs a model that was trained for the earlier task"):
        driver(folder, earlier)
    labels = {"being": 0, "place": 1}
    shape = AutoConfig.from_pretrained(folder / "model")
    shape.label2id, shape.id2label = labels, {number: label for label, number in labels.items()}
    tiny_model(tmp_path)
    with quiet_transformers():
        AutoModelForSequenceClassification.from_config(shape).save_pretrained(tmp_path)
    driver(folder, {**earlier, "model.name": str(tmp_path)})
    coarse = {"train.zero": 1, "train.precision": "bfloat16"}
    with pytest.raises(ValueError, match="bfloat16 is too coarse for that"):
        driver(folder, {**earlier, **coarse, "model.name": str(tmp_path)})
    driver(folder, {**earlier, "model.name": str(tmp_path), "train.precision": "bfloat16"})


def test_an_adapter_is_no_model_to_begin_with(folder, tmp_path):
    base = {"name": str(folder / "model"), "digest": ""}
    import json

    (tmp_path / RECORD).write_text(json.dumps({"base": base, "settings": {"name": "bitfit"}}))
    with pytest.raises(ValueError, match=r"is an adapter; begin with its base, .*model"):
        driver(folder, {"model.name": str(tmp_path)})


def test_what_attacks_have_unless_given():
    def of(**given):
        return load(FinetuneConfig, settings={f"adversarial.{k}": v for k, v in given.items()}).adversarial

    fields = ("epsilon", "alpha", "steps", "init", "weight")
    found = {name: [getattr(of(name=name), field) for field in fields] for name in ("none", "fgm", "pgd")}
    assert found == {"none": [None] * 5, "fgm": [0.2, *[None] * 4], "pgd": [0.2, 0.1, 3, None, None]}
    assert [getattr(of(name="freelb"), field) for field in fields] == [0.0, 0.1, 2, 0.6, None]
    assert [getattr(of(name="smart"), field) for field in fields] == [0.01, 1e-3, 1, 1e-5, 1.0]
    assert of(name="freelb", epsilon=0.5, steps=4).model_dump() == {
        "name": "freelb", "epsilon": 0.5, "alpha": 0.1, "steps": 4, "init": 0.6, "weight": None,
    }  # fmt: skip
    again = FinetuneConfig.model_validate({"adversarial": of(name="pgd").model_dump()}).adversarial
    assert again == of(name="pgd")


def test_smart_is_for_the_tasks_whose_models_have_logits():
    from raybert.tasks.base_model import TaskModel
    from raybert.tasks.known import MODELS, model_side
    from raybert.train.combinations import refuse_levers

    for task in MODELS:
        config = FinetuneConfig.model_validate({"task": {"name": task}, "adversarial": {"name": "smart"}})
        if issubclass(model_side(task).Model, TaskModel):
            refuse_levers(config)
        else:
            with pytest.raises(ValueError, match=r"adversarial\.name=smart compares the logits of classes"):
                refuse_levers(config)
