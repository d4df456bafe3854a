"""Tiny random models of every family, written in a second, for tests without a network."""

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "electra", "albert", "modernbert")
HIDDEN = 32
POSITIONS = 64

_WORDS = """the of and to in is that it was for on are as with his they at be this from have or by one had not but what
all were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more her two like him see time could no make than first been its who now people my made over did
down only way find use may water long little very after words called just where most know quick brown fox jumps lazy dog
model token vector text sentence embed batch language science machine learning data city river music world"""
_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}


def tiny_model(
    folder: str | Path,
    family: str = "bert",
    st: bool = True,
    *,
    pooling: str | Sequence[str] = "mean",
    normalize: bool = True,
    dense: int | None = None,
    dialect: str = "old",
    include_prompt: bool = True,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    max_seq_length: int | None = 48,
    do_lower_case: bool = False,
    dtype: str = "float32",
    layers: int = 2,
    heads: int = 4,
    seed: int = 0,
) -> Path:
    """Write a random model of `family` to `folder` and return it.

    Hidden width 32, 64 positions, a vocabulary with every ASCII letter. With `st` it is a sentence-transformers
    folder in the "old" or the "new" dialect (with a Dense module of `dense` numbers, and Normalize), without it a
    plain Hugging Face folder. The same arguments give the same weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, specials = _tokenizer(family)
    _write_tokenizer(folder, family, tokenizer, specials)
    _write_model(folder, family, tokenizer, specials, dtype, layers, heads, seed)
    if not st:
        return folder
    modes = [pooling] if isinstance(pooling, str) else list(pooling)
    _write_modules(folder, modes, normalize, dense, dialect, include_prompt, seed)
    _write_json(folder / "sentence_bert_config.json", _sentence_config(max_seq_length, do_lower_case))
    sentence = {"__version__": {}, "prompts": prompts or {}, "default_prompt_name": default_prompt_name}
    _write_json(folder / "config_sentence_transformers.json", sentence)
    return folder


def _sentence_config(max_seq_length: int | None, do_lower_case: bool) -> dict[str, Any]:
    config: dict[str, Any] = {"do_lower_case": do_lower_case}
    return config if max_seq_length is None else {"max_seq_length": max_seq_length, **config}


def _tokenizer(family: str) -> tuple[Tokenizer, dict[str, str]]:
    """A tokenizer of the family's kind and its special tokens by role."""
    if family in ("bert", "distilbert", "electra", "mpnet"):
        specials = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
        if family == "mpnet":
            specials = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "[UNK]", "mask": "<mask>"}
        tokenizer = _wordpiece(specials)
    elif family in ("roberta", "modernbert"):
        specials = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
        tokenizer = _byte_level(specials)
    else:
        specials = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
        tokenizer = _unigram(specials)
    cls, sep = specials["cls"], specials["sep"]
    ends = [(cls, tokenizer.token_to_id(cls)), (sep, tokenizer.token_to_id(sep))]
    if family in ("roberta", "xlm-roberta"):  # theirs doubles the separator in pairs and trims offsets
        tokenizer.post_processor = processors.RobertaProcessing(ends[1], ends[0], trim_offsets=True)
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=ends
        )
    return tokenizer, specials


def _wordpiece(specials: dict[str, str]) -> Tokenizer:
    letters = string.ascii_lowercase + string.digits
    tokens = [
        *specials.values(),
        *letters,
        *("##" + x for x in letters),
        *string.punctuation,
        *dict.fromkeys(_WORDS.split()),
    ]
    tokens += ["##ing", "##ed", "##er", "##ly", "##tion", "é", "##é", "中", "文"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=specials["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_specials(tokenizer, specials)


def _byte_level(specials: dict[str, str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(specials.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([_WORDS] * 2, trainer)
    return tokenizer


def _unigram(specials: dict[str, str]) -> Tokenizer:
    letters = [*string.printable.strip(), "▁", "é", "中", "文"]
    words = ["▁" + word for word in dict.fromkeys(_WORDS.split())]
    pieces = [(token, 0.0) for token in specials.values()]
    pieces += [(word, -6.0 - len(word) / 10) for word in words] + [
        (letter, -9.0) for letter in dict.fromkeys(letters)
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=list(specials).index("unk"), byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    return _with_specials(tokenizer, specials)


def _with_specials(tokenizer: Tokenizer, specials: dict[str, str]) -> Tokenizer:
    tokenizer.add_special_tokens(list(specials.values()))
    return tokenizer


def _write_tokenizer(folder: Path, family: str, tokenizer: Tokenizer, specials: dict[str, str]) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {f"{role}_token": token for role, token in specials.items()}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS}
    if family in ("bert", "distilbert", "electra"):
        config |= {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    _write_json(folder / "tokenizer_config.json", config)


def _write_model(
    folder: Path,
    family: str,
    tokenizer: Tokenizer,
    specials: dict[str, str],
    dtype: str,
    layers: int,
    heads: int,
    seed: int,
) -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    ids = {role: tokenizer.token_to_id(token) for role, token in specials.items()}
    shape: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 64,
    }
    if family == "distilbert":
        shape = {"dim": HIDDEN, "n_layers": layers, "n_heads": heads, "hidden_dim": 64}
    if family in ("electra", "albert"):
        shape["embedding_size"] = 16
    if family == "modernbert":
        # a narrow local window, so that the attention that differs from BERT's is at work
        shape |= {"local_attention": 8, "global_attn_every_n_layers": 2, "initializer_cutoff_factor": 2.0}
        shape |= {"cls_token_id": ids["cls"], "sep_token_id": ids["sep"]}
    counted = family in ("roberta", "xlm-roberta", "mpnet")
    config = AutoConfig.for_model(
        family,
        vocab_size=tokenizer.get_vocab_size(),
        # theirs count positions from padding_idx + 1
        max_position_embeddings=POSITIONS + (ids["pad"] + 1 if counted else 0),
        pad_token_id=ids["pad"],
        bos_token_id=ids["cls"],
        eos_token_id=ids["sep"],
        initializer_range=0.2,  # the usual 0.02 makes all texts of a random model look alike
        **shape,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(config, dtype=getattr(torch, dtype))
    _save_quietly(model, folder)


def _save_quietly(model: Any, folder: Path) -> None:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    if shown:
        logging.enable_progress_bar()


def _write_modules(
    folder: Path,
    modes: list[str],
    normalize: bool,
    dense: int | None,
    dialect: str,
    include_prompt: bool,
    seed: int,
) -> None:
    assert dialect in ("old", "new")
    names = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if dialect == "old":
        pooling: dict[str, Any] = {"word_embedding_dimension": HIDDEN}
        pooling |= {flag: mode in modes for mode, flag in _FLAGS.items()}
    else:
        new = ["lasttoken" if mode == "last" else mode for mode in modes]
        pooling = {"embedding_dimension": HIDDEN, "pooling_mode": new[0] if len(new) == 1 else new}
    _write_json(folder / "1_Pooling" / "config.json", {**pooling, "include_prompt": include_prompt})
    if dense:
        names.append(("2_Dense", "Dense"))
        _write_dense(folder / "2_Dense", HIDDEN * len(modes), dense, seed)
    if normalize:
        names.append((f"{len(names)}_Normalize", "Normalize"))
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": _class_path(kind, dialect)}
        for i, (path, kind) in enumerate(names)
    ]
    _write_json(folder / "modules.json", entries)


def _write_dense(path: Path, width: int, dense: int, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    activation = "torch.nn.modules.activation.Tanh"
    config = {"in_features": width, "out_features": dense, "bias": True, "activation_function": activation}
    _write_json(path / "config.json", config)
    random = torch.Generator().manual_seed(seed)
    weights = {
        "linear.weight": torch.randn(dense, width, generator=random) / width**0.5,
        "linear.bias": torch.randn(dense, generator=random) / 10,
    }
    save_file(weights, path / "model.safetensors")


def _class_path(kind: str, dialect: str) -> str:
    if dialect == "old":
        return f"sentence_transformers.models.{kind}"
    package = "sentence_transformer" if kind == "Pooling" else "base"
    return f"sentence_transformers.{package}.modules.{kind.lower()}.{kind}"


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
