"""One thread a test process (tiny models lose more to waiting than they win), tokens and a finished run."""

import pytest
import torch

from tests.train.tokens import settings, token_folder


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokens(tmp_path_factory) -> str:
    return token_folder(tmp_path_factory.mktemp("tokens") / "nsp")


@pytest.fixture(scope="session")
def finished(tokens, tmp_path_factory, ray_local):
    """An undisturbed run on two workers."""
    from raybert.train.pretrain import pretrain

    output = tmp_path_factory.mktemp("runs") / "whole"
    return output, pretrain(settings(tokens, output))
