import pytest
import yaml
from pydantic import ValidationError

from raybert.__main__ import VERBS, parse
from raybert.config import ConfigError, EmbedConfig, describe, dump_yaml, load, require


def test_yaml_then_settings_then_defaults(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {name: m, max_length: 7}\ndata.path: x\nbatch_tokens: 5\n")
    config = load(EmbedConfig, file, {"model.max_length": 9, "output": {"path": "o"}})
    assert (config.model.name, config.model.max_length, config.data.path) == ("m", 9, "x")
    assert (config.batch_tokens, config.output.path, config.output.dtype) == (5, "o", "float32")


def test_python_understands_dotted_keys_and_is_frozen():
    config = EmbedConfig(**{"model.name": "m", "data": {"text": "a,b"}})
    assert config.data.text_columns == ["a", "b"]
    with pytest.raises(ValidationError):
        config.batch_tokens = 3


def test_resolved_yaml_reads_back_to_the_same_settings(tmp_path):
    config = load(EmbedConfig, settings={"model.name": "m", "workers.count": [1, 4], "data.columns": ["a"]})
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    assert load(EmbedConfig, tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.nmae=x", "unknown setting 'model.nmae'; did you mean 'model.name'?"),
        ("name=x", "did you mean 'model.name'?"),
        ("batchtokens=3", "did you mean 'batch_tokens'?"),
        ("model=3", "model=3 does not fit: it is a group of settings"),
        ("batch_tokens=abc", "batch_tokens='abc' does not fit"),
        ("model.pooling=avg", "model.pooling='avg' does not fit"),
        ("output.rows_per_shard=0", "output.rows_per_shard=0 does not fit"),
        ("workers.count=[4,1]", "workers.count=[4, 1] must be"),
        ("workers.count=0", "workers.count=0 must be"),
        ("chunk.overlap=3", "need chunk.size"),
        ("nonsense", "cannot use 'nonsense'"),
        ("missing.yaml", "cannot read the config file missing.yaml"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_it(word, message):
    with pytest.raises(ConfigError) as error:
        parse("embed", [word])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("task.knd=multi", "unknown setting 'task.knd'; did you mean 'task.kind'?"),
        ("task.kind=some", "task.kind='some' does not fit"),
        ("task.name=nothing", "task.name='nothing' must be one of 'classification', 'entities'"),
        ("task.class_weights=heavy", "task.class_weights='heavy' does not fit"),
        ("adapter.rank=4", "adapter.rank means nothing with adapter.name=none; it is of lora, adalora"),
        ("train.seeds=[1,1]", "names a seed twice"),
    ],
)
def test_groups_of_several_kinds_are_explained(word, message):
    with pytest.raises(ConfigError) as error:
        parse("finetune", [word])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_task_is_chosen_by_its_name():
    assert parse("finetune", ["task.kind=multi"]).task.kind == "multi"
    config = parse("finetune", ["task.name=entities", "task.scheme=bioes", "data.text=a,b"])
    assert (config.task.name, config.task.scheme, config.data.text_columns) == (
        "entities",
        "bioes",
        ["a", "b"],
    )


def test_broken_yaml_names_file_and_line(tmp_path):
    (tmp_path / "c.yaml").write_text("a: 1\nb: [\n")
    with pytest.raises(ConfigError, match=r"c.yaml line \d+ is not valid YAML"):
        load(EmbedConfig, tmp_path / "c.yaml")


def test_command_line_values_are_json_where_that_fits():
    config = parse(
        "embed",
        ["model.revision=123", "workers.count=[1,4]", 'data.path=["a","b"]', "model.normalize=false",
         "output.max_rejects=0.5", "data.id=7", "batch_tokens=1e4", "data.template={a}=={b}"],
    )  # fmt: skip
    assert (config.model.revision, config.workers.count, config.data.paths) == ("123", [1, 4], ["a", "b"])
    assert (config.model.normalize, config.output.max_rejects, config.data.id) == (False, 0.5, "7")
    assert (config.batch_tokens, config.data.template) == (10000, "{a}=={b}")


def test_a_verbs_own_group_may_be_left_out():
    config = parse("search", ["folder", "a query", "k=3"])
    assert (config.data.path, config.search.query, config.search.k) == ("folder", "a query", 3)


def test_require_names_the_missing_setting():
    with pytest.raises(ConfigError, match=r"output.path is missing"):
        require(
            EmbedConfig(**{"model.name": "m", "data.path": "d"}), "model.name", "data.path", "output.path"
        )


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_says_what_it_means(verb):
    for key, _, meaning in describe(VERBS[verb].config):
        assert meaning, key


def test_shipped_yaml_files_load():
    from pathlib import Path

    files = sorted(set(Path("jobs").glob("*.yaml")) - {Path("jobs/serve.yaml")})  # that is Ray Serve's file
    assert files
    for file in files:
        verb = next(
            verb for verb in VERBS if verb in (file.read_text().split()[2], file.stem.partition("-")[0])
        )
        assert load(VERBS[verb].config, file), file
        assert yaml.safe_load(file.read_text())
