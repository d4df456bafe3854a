"""Sequence to sequence written plainly with transformers' EncoderDecoderModel."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from plain_task import Row, Task
from recipes import WORDS
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    EncoderDecoderModel,
    GenerationConfig,
)


class Generation(Task):
    """A text from a text, by two encoders of which one is made a decoder (arXiv 1907.12461)."""

    longest, beams = 64, 4

    def __init__(self, folder: str, max_length: int, labels: Any = None, *, words: str = "") -> None:
        super().__init__(folder, max_length, labels or ())
        self.fresh = bool(words)
        self.words = AutoTokenizer.from_pretrained(words or Path(folder, "target_tokenizer"))
        self.collate = self._collate

    @classmethod
    def to_train(cls, folder: str, max_length: int, rows: Sequence[Row], tables: Path) -> "Task":
        return cls(folder, max_length, words=str(tables / WORDS))

    def model(self) -> Any:
        if not self.fresh:
            return EncoderDecoderModel.from_pretrained(self.folder)
        words = self.words
        ids = {
            "bos_token_id": words.cls_token_id,
            "eos_token_id": words.sep_token_id,
            "pad_token_id": words.pad_token_id,
        }
        shape = AutoConfig.from_pretrained(
            self.folder, is_decoder=True, add_cross_attention=True, vocab_size=len(words), **ids
        )
        decoder = AutoModelForCausalLM.from_pretrained(
            self.folder, config=shape, ignore_mismatched_sizes=True
        )
        encoder = AutoModel.from_pretrained(self.folder, add_pooling_layer=False)
        made = EncoderDecoderModel(encoder=encoder, decoder=decoder)
        made.config.decoder_start_token_id = words.cls_token_id
        made.config.pad_token_id = words.pad_token_id
        made.generation_config = GenerationConfig(decoder_start_token_id=words.cls_token_id, **ids)
        return made

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        self.words.save_pretrained(folder / "target_tokenizer")

    def features(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        sources, targets = ([row[name] for row in rows] for name in ("source", "target"))
        read = self.tokenizer(sources, truncation=True, max_length=self.max_length)["input_ids"]
        written = self.words(targets, truncation=True, max_length=self.longest - 1, add_special_tokens=False)[
            "input_ids"
        ]
        end = self.words.sep_token_id
        return [{"input_ids": ids, "labels": [*told, end]} for ids, told in zip(read, written, strict=True)]

    def _collate(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.tokenizer.pad({"input_ids": [one["input_ids"] for one in features]}, return_tensors="pt")
        start, pad = self.words.cls_token_id, self.words.pad_token_id
        return {
            **batch,
            "labels": _padded([one["labels"] for one in features], -100),
            "decoder_input_ids": _padded([[start, *one["labels"][:-1]] for one in features], pad),
        }

    @torch.inference_mode()
    def predict(self, model: Any, rows: Sequence[Row]) -> list[Any]:
        """The texts that are written."""
        features = self.features(rows)
        order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]))
        found: list[Any] = [""] * len(features)
        for at in range(0, len(order), 64):
            some = order[at : at + 64]
            batch = self._collate([features[i] for i in some])
            ids = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                num_beams=self.beams,
                do_sample=False,
                max_new_tokens=self.longest,
            )
            for i, text in zip(some, self.words.batch_decode(ids, skip_special_tokens=True), strict=True):
                found[i] = text
        return found

    def scores(self, logits: list[Any], rows: Sequence[Row]) -> dict[str, float]:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        true = [[row["target"] for row in rows]]
        return {
            "bleu": BLEU().corpus_score(logits, true).score,
            "chrf": CHRF().corpus_score(logits, true).score,
        }


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=value
    )
