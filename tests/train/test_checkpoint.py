"""A checkpoint is there whole or not at all; the newest ones and the best are kept."""

import json

import pytest
import torch
from torch.testing import assert_close

from raybert.train.checkpoint import Checkpoints, RunState
from raybert.train.gather import Tensors, load_weights
from tests.train.fakes import model


def tensors(seed: int) -> Tensors:
    plain = model(seed=seed).plain
    weights = {name: p.detach().clone() for name, p in plain.named_parameters()}
    moments = {f"{name}.exp_avg": torch.rand_like(w) for name, w in weights.items()}
    return Tensors(weights, moments, updates=seed)


@pytest.fixture
def kept(tmp_path):
    return Checkpoints(tmp_path / "run")


def test_what_is_written_is_read(kept):
    state = RunState(step=7, cursor={"epoch": 1, "bin": 3}, digests=[5, 6], loss=1.5, job={"a": 1}, world=2)
    was = tensors(4)
    kept.write(was, state)
    found, again = kept.read(7)
    assert again == state
    assert found.updates == 4
    assert_close(found.weights, was.weights, atol=0, rtol=0)
    assert_close(found.moments, was.moments, atol=0, rtol=0)
    assert_close(kept.weights(7), was.weights)


def test_half_a_checkpoint_does_not_exist(kept, monkeypatch):
    kept.write(tensors(1), RunState(step=1))
    write = kept.store.write

    def dies_at_the_state(name, data, **options):
        if name.endswith("state.json"):
            raise OSError("disk full")
        write(name, data, **options)

    monkeypatch.setattr(kept.store, "write", dies_at_the_state)
    for step in (1, 2):  # one anew, and one over an old one
        with pytest.raises(OSError, match="disk full"):
            kept.write(tensors(2), RunState(step=step))
    assert kept.steps() == [1]
    assert kept.read(1)[0].updates == 1
    assert_close(kept.read(1)[0].weights, tensors(1).weights)


def test_damage_is_seen(kept, tmp_path):
    kept.write(tensors(1), RunState(step=1))
    file = next(tmp_path.rglob("weights-*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"step-00000001/weights-.*\.safetensors is damaged"):
        kept.read(1)


def test_a_later_format_is_refused(kept, tmp_path):
    kept.write(tensors(1), RunState(step=1))
    file = next(tmp_path.rglob("state.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="newer raybert"):
        kept.read(1)


def test_the_newest_and_the_best_are_kept(kept, tmp_path):
    for step, loss in [(1, 5.0), (2, 2.0), (3, 3.0), (4, None), (5, 4.0)]:
        kept.write(tensors(step), RunState(step=step, evaluation={} if loss is None else {"loss": loss}))
    assert kept.steps() == [1, 2, 3, 4, 5]
    assert kept.best() == 2
    kept.prune(2)
    assert kept.steps() == [2, 4, 5]
    kept.drop_after(4)
    assert kept.steps() == [2, 4]
    assert len(list((tmp_path / "run").glob("step-*"))) == 2


def test_another_model_is_refused():
    was = tensors(0)
    with pytest.raises(ValueError, match="of another model: "):
        load_weights(model(pairs=True).plain, was.weights)
    name = "bert.embeddings.word_embeddings.weight"
    was.weights[name] = was.weights[name][:5]
    with pytest.raises(ValueError, match=r"word_embeddings\.weight is \(5, 32\) there"):
        load_weights(model().plain, was.weights)
