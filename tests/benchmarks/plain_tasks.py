"""Every task of the benchmarks, written plainly with transformers (plain_task.py)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_generation import Generation
from plain_scores import answer_words, entity_scores, relation_scores, word_f1
from plain_task import Row, Task
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
)


class Regression(Task):
    """A number for a pair of texts, by one model that reads both."""

    @staticmethod
    def labels_of(rows: Sequence[Row]) -> list[str]:
        return ["LABEL_0"]

    def options(self) -> dict[str, Any]:
        return {"problem_type": "regression"}

    def features(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        firsts, seconds = ([row[name] for row in rows] for name in ("sentence1", "sentence2"))
        made = self.tokenizer(firsts, seconds, truncation=True, max_length=self.max_length)
        return [
            {"input_ids": ids, "token_type_ids": types, "label": row["score"]}
            for ids, types, row in zip(made["input_ids"], made["token_type_ids"], rows, strict=True)
        ]

    def scores(self, logits: list[np.ndarray], rows: Sequence[Row]) -> dict[str, float]:
        from scipy.stats import pearsonr, spearmanr

        true, found = [row["score"] for row in rows], [float(one[0]) for one in logits]
        return {
            "spearman": float(spearmanr(true, found).statistic),
            "pearson": float(pearsonr(true, found).statistic),
        }


class Entities(Task):
    """Tags of words; a word's tag is that of its first piece."""

    auto = AutoModelForTokenClassification

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.collate = DataCollatorForTokenClassification(self.tokenizer)

    @staticmethod
    def labels_of(rows: Sequence[Row]) -> list[str]:
        return sorted({tag for row in rows for tag in row["ner_tags"]})

    def _encode(self, rows: Sequence[Row]) -> Any:
        words = [row["tokens"] for row in rows]
        return self.tokenizer(words, is_split_into_words=True, truncation=True, max_length=self.max_length)

    def features(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        made, found = self._encode(rows), []
        numbers = {label: i for i, label in enumerate(self.labels)}
        for i, row in enumerate(rows):
            words = made.word_ids(i)
            first = [
                word is not None and word != before
                for word, before in zip(words, [None, *words[:-1]], strict=True)
            ]
            labels = [
                numbers[row["ner_tags"][word]] if begins else -100
                for word, begins in zip(words, first, strict=True)
            ]
            found.append({"input_ids": made["input_ids"][i], "labels": labels})
        return found

    def scores(self, logits: list[np.ndarray], rows: Sequence[Row]) -> dict[str, float]:
        made, predicted = self._encode(rows), []
        for i, row in enumerate(rows):
            tags = ["O"] * len(row["tokens"])
            for place, word in reversed(list(enumerate(made.word_ids(i)))):
                if word is not None:
                    tags[word] = self.labels[int(logits[i][place].argmax())]
            predicted.append(tags)
        return entity_scores([row["ner_tags"] for row in rows], predicted)


class WithMarkers(nn.Module):
    """An encoder and a linear layer on the hidden states of two start markers, side by side (arXiv 1906.03158)."""

    def __init__(self, folder: str, tokens: int, labels: int) -> None:
        super().__init__()
        self.bert = AutoModel.from_pretrained(folder, add_pooling_layer=False)
        self.bert.resize_token_embeddings(tokens, mean_resizing=False)
        self.dropout = nn.Dropout(self.bert.config.hidden_dropout_prob)
        self.classifier = nn.Linear(2 * self.bert.config.hidden_size, labels)
        nn.init.normal_(self.classifier.weight, std=self.bert.config.initializer_range)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: Any, attention_mask: Any, first: Any, second: Any, labels: Any = None, **_: Any
    ) -> Any:
        hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        both = torch.cat([hidden[rows, first], hidden[rows, second]], 1)
        logits = self.classifier(self.dropout(both))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


class Relations(Task):
    """The relation of two marked places."""

    markers = ("[E1]", "[/E1]", "[E2]", "[/E2]")

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.tokenizer.add_special_tokens({"additional_special_tokens": list(self.markers)})

    def model(self) -> nn.Module:
        made = WithMarkers(self.folder, len(self.tokenizer), len(self.labels))
        kept = load_file(Path(self.folder, "model.safetensors"))
        if "classifier.weight" in kept:
            made.classifier.load_state_dict(
                {name: kept[f"classifier.{name}"].float() for name in ("weight", "bias")}
            )
        return made

    def save(self, model: Any, folder: Path) -> None:
        model.bert.config.update(
            {
                "id2label": dict(enumerate(self.labels)),
                "label2id": {name: i for i, name in enumerate(self.labels)},
            }
        )
        super().save(model.bert, folder)
        head = {f"classifier.{name}": value for name, value in model.classifier.state_dict().items()}
        file = folder / "model.safetensors"
        save_file({**load_file(file), **head}, file, metadata={"format": "pt"})

    def features(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        texts = [re.sub(r"<(/?)e([12])>", r" [\1E\2] ", row["text"]) for row in rows]
        made = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        first, second = (self.tokenizer.convert_tokens_to_ids(self.markers[i]) for i in (0, 2))
        numbers = {label: i for i, label in enumerate(self.labels)}
        return [
            {
                "input_ids": ids,
                "first": ids.index(first),
                "second": ids.index(second),
                "labels": numbers[row["label"]],
            }
            for ids, row in zip(made, rows, strict=True)
        ]

    def outputs(self, given: Any) -> torch.Tensor:
        return given["logits"]

    def scores(self, logits: list[np.ndarray], rows: Sequence[Row]) -> dict[str, float]:
        found = [self.labels[int(one.argmax())] for one in logits]
        return relation_scores([row["label"] for row in rows], found)


class Answers(Task):
    """The span of a context that answers a question; contexts of one window."""

    auto = AutoModelForQuestionAnswering
    longest = 30

    @staticmethod
    def labels_of(rows: Sequence[Row]) -> list[str]:
        return ["LABEL_0", "LABEL_1"]

    def _encode(self, rows: Sequence[Row]) -> Any:
        asked, told = ([row[name] for row in rows] for name in ("question", "context"))
        return self.tokenizer(
            asked, told, truncation="only_second", max_length=self.max_length, return_offsets_mapping=True
        )

    def features(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        made, found = self._encode(rows), []
        for i, row in enumerate(rows):
            start, end = row["answer_start"], row["answer_start"] + len(row["answer"])
            inside = [
                place
                for place, (low, high) in enumerate(made["offset_mapping"][i])
                if made.sequence_ids(i)[place] == 1 and low < end and high > start
            ]
            first, last = (inside[0], inside[-1]) if inside else (0, 0)
            one = {name: made[name][i] for name in ("input_ids", "token_type_ids")}
            found.append({**one, "start_positions": first, "end_positions": last})
        return found

    def outputs(self, given: Any) -> torch.Tensor:
        return torch.stack([given.start_logits, given.end_logits], -1)

    def scores(self, logits: list[np.ndarray], rows: Sequence[Row]) -> dict[str, float]:
        made, exact, f1 = self._encode(rows), [], []
        for i, row in enumerate(rows):
            context = np.array([part == 1 for part in made.sequence_ids(i)])
            n = len(context)
            sums = logits[i][:n, None, 0] + logits[i][None, :n, 1]
            allowed = np.triu(np.ones((n, n), bool)) & ~np.triu(np.ones((n, n), bool), self.longest)
            sums = np.where(allowed & context[:, None] & context[None], sums, -np.inf)
            first, last = np.unravel_index(int(sums.argmax()), sums.shape)
            spans = made["offset_mapping"][i]
            found = row["context"][spans[first][0] : spans[last][1]]
            exact.append(answer_words(found) == answer_words(row["answer"]))
            f1.append(word_f1(answer_words(row["answer"]), answer_words(found)))
        return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}


KINDS = {
    "generation": Generation,
    "classification": Task,
    "regression": Regression,
    "entities": Entities,
    "relations": Relations,
    "answers": Answers,
}
