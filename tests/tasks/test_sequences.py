"""How a tokenizer frames texts, whatever its file says of padding."""

import pytest
from tokenizers import Tokenizer

from raybert.tasks.sequences import frame
from tests.encoder.tiny import tiny_model


@pytest.mark.parametrize("pair", [False, True])
def test_padding_and_truncation_of_the_folder_are_no_special_tokens(tmp_path, pair):
    """all-MiniLM-L6-v2 pads to 128 tokens in its tokenizer.json."""
    tiny_model(tmp_path / "model")
    path = str(next(tmp_path.rglob("tokenizer.json")))
    plain = frame(Tokenizer.from_file(path), pair=pair)
    assert (len(plain.before), len(plain.between), len(plain.after)) == (1, int(pair), 1)
    padded = Tokenizer.from_file(path)
    padded.enable_padding(length=128)
    padded.enable_truncation(3)
    assert frame(padded, pair=pair) == plain
