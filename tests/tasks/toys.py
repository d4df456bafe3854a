"""Small tokenizers of the three kinds, whose offsets differ, made on the spot."""

import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

KINDS = ("wordpiece", "bytes", "unigram")
_TEXT = "the quick brown fox jumps over the lazy dog in Paris and New York with 5 adults, 1 child at 6 p.m. (or so)"


def tokenizer(kind: str) -> Tokenizer:
    """BERT's kind (lower case, accents stripped), RoBERTa's (no token types, offsets trimmed) or XLM's (offsets as
    they are)."""
    return {"wordpiece": _wordpiece, "bytes": _bytes, "unigram": _unigram}[kind]()


def _wordpiece() -> Tokenizer:
    letters = string.ascii_lowercase + string.digits
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*_TEXT.lower().split(), "jump", "##ing", "##ed", "##es", "##s", "中", "文"]
    tokens = [*specials, *letters, *("##" + x for x in letters), *string.punctuation, *words]
    tokens = list(dict.fromkeys(tokens))
    made = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(specials)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return made


def _bytes() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([_TEXT] * 3, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    return made


def _unigram() -> Tokenizer:
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = dict.fromkeys([*string.printable.strip(), "▁", "é", "中", "文"])
    words = dict.fromkeys("▁" + word for word in _TEXT.split())
    pieces = [(x, 0.0) for x in specials] + [(x, -6.0) for x in words] + [(x, -9.0) for x in letters]
    made = Tokenizer(models.Unigram([*pieces, (").", -7.0), ("s!", -7.0)], unk_id=3, byte_fallback=False))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(specials)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made
