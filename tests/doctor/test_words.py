"""The command line: that of the job, with `doctor` before it."""

from pathlib import Path

import pytest

from raybert.__main__ import parse
from raybert.config import ConfigError
from raybert.config.doctor import JOBS
from raybert.doctor.needs import needs_of

ROOT = Path(__file__).parents[2]
VERBS_OF = {
    **{name: "finetune" for name in ("answers", "classify", "entities", "relations", "response-bi")},
    **{name: "finetune" for name in ("retrieval", "selection", "several", "similarity", "translate")},
    **{name: name for name in ("embed", "evaluate", "predict", "prepare", "pretrain", "serve")},
    "embed-demo": "embed",
}
PATHS = ["model.name=m", "data.path=d", "output.path=o"]


@pytest.mark.parametrize("file", sorted(VERBS_OF))
def test_every_job_of_ours_is_known_by_its_file(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [] if file in ("serve", "several") else PATHS
    config = parse("doctor", [f"jobs/{file}.yaml", *words])
    assert config.doctor.verb == VERBS_OF[file]
    assert type(config.job) is JOBS[VERBS_OF[file]]
    if words:
        assert config.job.output.path == "o"


def test_no_words_are_the_cluster_alone():
    config = parse("doctor", [])
    assert (config.doctor.verb, config.job) == (None, None)
    assert needs_of("", None).verb == ""


def test_its_own_settings_stand_among_those_of_the_job():
    config = parse("doctor", ["embed", *PATHS, "format=json", "doctor.timeout=5", "batch_tokens=64"])
    assert (config.doctor.verb, config.doctor.format, config.doctor.timeout) == ("embed", "json", 5)
    assert config.job.batch_tokens == 64
    assert parse("doctor", ["verb=predict", *PATHS]).doctor.verb == "predict"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (PATHS, "fit embed, prepare, pretrain, finetune, evaluate, predict; say for which verb"),
        (["embed", *PATHS, "model.nmae=x"], "did you mean 'model.name'"),
        (["jobs/embed.yaml", "model.nmae=x"], "did you mean 'model.name'"),
        (["nothing.at.all=1"], "fit no verb"),
        (["timeout=never"], "doctor.timeout='never'"),
        (["embed", "jobs/serve.yaml"], "it is for serve, not for embed"),
        (["jobs/serve.yaml", "serve.prot=1"], "unknown setting 'serve.prot'"),
        (["verb=embde"], "doctor.verb='embde'"),
    ],
)
def test_what_does_not_fit_is_named(words, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError) as error:
        parse("doctor", words)
    assert said in str(error.value)


def test_a_file_for_serve_deploy_is_what_it_deploys(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = parse("doctor", ["jobs/serve.yaml", "serve.deadline=9"])
    assert config.doctor.verb == "serve"
    assert (config.job.serve.host, config.job.serve.port) == ("0.0.0.0", 8000)
    assert (config.job.serve.deadline, config.job.workers.count) == (9, [1, 4])


def needs(*words: str):
    config = parse("doctor", list(words))
    return needs_of(config.doctor.verb, config.job)


def test_what_each_verb_needs():
    embed = needs("embed", *PATHS)
    assert [setting for setting, _ in embed.reads] == ["data.path"]
    assert (embed.kernels, embed.automatic, embed.training) == ("auto", "model.dtype", False)
    assert Path(embed.writes).is_absolute()
    exact = needs("embed", *PATHS, "model.dtype=float32")
    assert (exact.kernels, exact.automatic) == ("", "")
    prepare = needs("prepare", *PATHS)
    assert (prepare.kernels, prepare.automatic, prepare.refuses_gpus) == ("", "", True)
    tuned = needs("finetune", *PATHS, "data.validation=v")
    assert not tuned.reads
    assert [setting for setting, _ in tuned.driver_reads] == ["data.path", "data.validation"]
    assert tuned.training
    pretrain = needs("pretrain", "data.path=d", "output.path=o", "train.steps=1", "workers.gpus=1")
    assert not pretrain.models
    assert (pretrain.automatic, pretrain.wants_gpus) == ("train.precision", True)
    serve = needs("serve", "model.name=m", "serve.port=8123")
    assert serve.binds == (("127.0.0.1", 8123),)
    assert not serve.writes
    compared = needs("evaluate", *PATHS, "model.before=n")
    assert [(each.setting, each.name, each.config.model.name) for each in compared.models] == [
        ("model.name", "m", "m"),
        ("model.before", "n", "n"),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["embed", "data.path=d", "output.path=o"], "model.name is missing"),
        (["embed", "model.name=m", "data.path=d"], "output.path is missing"),
        (["pretrain", "data.path=d", "output.path=o"], "train.steps is missing"),
        (["finetune", *PATHS, "train.offload=true", "train.zero=0"], "train.zero=2"),
        (["serve", "serve.port=1"], "model.name is missing"),
    ],
)
def test_what_the_verb_would_refuse_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        needs(*words)
