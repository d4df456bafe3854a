"""raybert vocabulary: train a WordPiece (or another) tokenizer on a corpus; the result is a Hugging Face folder."""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from raybert.config import DataSettings, VocabularyConfig, load, require
from raybert.corpus.progress import duration
from raybert.corpus.readers import check_columns, read, scan
from raybert.corpus.sources import discover
from raybert.corpus.texts import text_columns, texts_and_reasons, wanted_columns

_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def main(config: VocabularyConfig) -> int:
    """The command: train, say where the tokenizer lies. Returns 0."""
    started = time.monotonic()
    folder, texts, size = vocabulary(config)
    print(f"texts      {texts:>13,}")
    print(f"vocabulary {size:>13,}")
    print(f"time       {duration(time.monotonic() - started):>13}")
    print(f"where      {folder}")
    return 0


def vocabulary(config: VocabularyConfig | Mapping[str, Any]) -> tuple[Path, int, int]:
    """Train a tokenizer on the texts of a corpus, streamed: memory holds the distinct words, never the corpus.

    Returns:
        the folder (tokenizer.json, tokenizer_config.json), the texts read, and the size of the vocabulary.

    Raises:
        ValueError: settings or input that cannot be used, or an output folder that holds other things.
    """
    if not isinstance(config, VocabularyConfig):
        config = load(VocabularyConfig, settings=config)
    require(config, "data.path", "output.path")
    folder = Path(config.output.path).expanduser().absolute()
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"output.path={folder} is not empty: give a new or empty folder")
    settings = config.vocabulary
    tokenizer, trainer = _untrained(settings.lowercase), _trainer(settings.size, settings.min_frequency)
    texts = _Texts(config.data)
    tokenizer.train_from_iterator(iter(texts), trainer)
    if not texts.count:
        raise ValueError(f"data.path={config.data.path} holds no texts: there is nothing to learn from")
    _finish(tokenizer)
    _save(tokenizer, folder, config)
    return folder, texts.count, tokenizer.get_vocab_size()


class _Texts:
    """The texts of a corpus, one at a time, counted."""

    def __init__(self, data: DataSettings) -> None:
        self._data, self.count = data, 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts():
            if self.count == self._data.limit:
                return
            self.count += 1
            yield text

    def _texts(self) -> Iterator[str]:
        data = self._data
        names = wanted_columns(data, [])
        for file in discover(data.paths, data.format):
            found = scan(file, rows_per_shard=4096, text_columns=text_columns(data), max_chars=data.max_chars)
            check_columns(file, found, names)
            tables = read(
                file,
                list(found.shards),
                names,
                types={name: found.types[name] for name in names if name in found.types},
                text_columns=text_columns(data),
                max_chars=data.max_chars,
            )
            for table in tables:
                yield from (text for text in texts_and_reasons(table, data)[0] if text is not None)


def _untrained(lowercase: bool) -> Tokenizer:
    """BERT's: clean text, Chinese characters apart, words and punctuation apart (Devlin et al. 2019)."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=_SPECIAL["unk"], max_input_chars_per_word=200))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _trainer(size: int, min_frequency: int) -> trainers.WordPieceTrainer:
    return trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        special_tokens=list(_SPECIAL.values()),
        show_progress=sys.stderr.isatty(),
    )


def _finish(tokenizer: Tokenizer) -> None:
    cls, sep = (_SPECIAL[name] for name in ("cls", "sep"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )


def _save(tokenizer: Tokenizer, folder: Path, config: VocabularyConfig) -> None:
    """Written aside and renamed, so that half a folder is never seen."""
    from transformers import BertTokenizerFast

    named = {f"{name}_token": token for name, token in _SPECIAL.items()}
    made = BertTokenizerFast(
        tokenizer_object=tokenizer,
        do_lower_case=config.vocabulary.lowercase,
        model_max_length=config.vocabulary.max_length,
        **named,
    )
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    made.save_pretrained(aside)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    (aside / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))  # for programs of BERT's time
    if folder.exists():
        folder.rmdir()
    aside.rename(folder)
