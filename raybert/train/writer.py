"""The scores of the texts that an encoder-decoder writes for its validation rows: by all ranks together."""

from typing import Any

import numpy as np
from tokenizers import Tokenizer

from raybert.corpus.store import Store
from raybert.tasks.examples import Examples
from raybert.tasks.generation import TARGET_TOKENIZER, texts_of
from raybert.train.task_job import TOKENIZER


class Writer:
    """`writer(model, examples)` is what a model of the run writes, {"text": object [n]}.

    Args:
        store: the folder of the run.
        job: what the driver resolved.
    """

    def __init__(self, store: Store, job: dict[str, Any]) -> None:
        folder = f"{TOKENIZER}/{TARGET_TOKENIZER}" if job["decoder"]["own_tokenizer"] else TOKENIZER
        self._tokenizer = Tokenizer.from_str(store.read(f"{folder}/tokenizer.json").decode())
        self._batch_tokens = job["batch_tokens"]

    def __call__(self, model: Any, examples: Examples) -> dict[str, np.ndarray]:
        """See the class. The model must be in evaluation mode."""
        from raybert.tasks.writing_model import write

        tokens = write(model.plain, examples, batch_tokens=self._batch_tokens, autocast=model.autocast)
        return {"text": texts_of(tokens, self._tokenizer)}
