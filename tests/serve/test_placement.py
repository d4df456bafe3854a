"""CPUs and GPUs of replicas."""

import pytest

from raybert.config import ConfigError, load
from raybert.config.serving import ServeConfig
from raybert.corpus.session import cores
from raybert.serve.placement import check_fits, settle


def settled(**settings):
    return settle(load(ServeConfig, settings=settings))


def test_replicas_share_the_cpus_of_the_machine(monkeypatch):
    monkeypatch.setattr("raybert.serve.placement.cores", lambda: 8)
    alone = settled(**{"model.name": "m", "serve.name": "m"})
    assert alone["m"].workers.cpus == 8
    assert settled(**{"model.name": "m", "workers.count": [1, 4]})["m"].workers.cpus == 2
    several = settled(
        models={"a": {"model": {"name": "x"}}, "b": {"model": {"name": "y"}, "workers": {"cpus": 3}}}
    )
    assert {name: one.workers.cpus for name, one in several.items()} == {"a": 4, "b": 3}
    assert settled(**{"model.name": "m", "workers.count": 100})["m"].workers.cpus == 1


def test_a_gpu_that_is_asked_for_is_asked_of_ray():
    assert settled(**{"model.name": "m", "workers.gpus": 0.5})["m"].workers.gpus == 0.5


def test_replicas_that_would_wait_for_ever_are_refused():
    fits = settled(**{"model.name": "m", "workers.count": [2, 9], "workers.cpus": 2})
    check_fits(fits, 4)
    with pytest.raises(ConfigError, match=r"do not fit on the 3 CPUs .*m 2 x 2 CPUs"):
        check_fits(fits, 3)
    check_fits(settled(**{"model.name": "m"}), cores() + 1)
