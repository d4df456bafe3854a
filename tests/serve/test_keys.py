"""Who may ask."""

import os

import pytest

from raybert.serve import keys as module
from raybert.serve.errors import ApiError
from raybert.serve.keys import Keys


@pytest.fixture
def at_once(monkeypatch):
    """A file is looked at for every request."""
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0.0)


def test_keys_of_a_variable(monkeypatch):
    monkeypatch.setenv("THE_KEYS", "one, two")
    keys = Keys("env:THE_KEYS")
    keys.check("Bearer one")
    keys.check("bearer  two ")
    for wrong in (None, "", "one", "Bearer", "Bearer one,", "Bearer three", "Basic one", "Bearer \udcff"):
        with pytest.raises(ApiError) as refused:
            keys.check(wrong)
        assert refused.value.status == 401
        assert "three" not in refused.value.message


def test_a_file_that_changes(tmp_path, at_once):
    path = tmp_path / "keys"
    path.write_text("# of the team\nold\n\n")
    keys = Keys(str(path))
    keys.check("Bearer old")
    with pytest.raises(ApiError):
        keys.check("Bearer # of the team")
    path.write_text("new\n")
    os.utime(path, ns=(1, 1))
    keys.check("Bearer new")
    with pytest.raises(ApiError):
        keys.check("Bearer old")


def test_a_file_that_vanishes_or_empties_lets_in_whom_it_did(tmp_path, at_once):
    path = tmp_path / "keys"
    path.write_text("key\n")
    keys = Keys(str(path))
    path.write_text("")
    keys.check("Bearer key")
    path.unlink()
    keys.check("Bearer key")
    with pytest.raises(ApiError):
        keys.check("Bearer other")


@pytest.mark.parametrize("source", ["env:NOT_THERE", "/not/there"])
def test_no_keys_are_refused(source):
    with pytest.raises(ValueError, match=r"serve\.keys_from"):
        Keys(source)
