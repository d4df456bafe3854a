"""How near written texts are to their references, BLEU, chrF and ROUGE, and how likely the references are; streaming."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raybert.config.tasks import GenerationSettings
from raybert.tasks.examples import Examples

_ROUGES = ("rouge1", "rouge2", "rougeL")
_ORDER = 4  # of BLEU
_WORD = re.compile(r"[^\W_]+")


class GenerationScores:
    """Sums that add up over rows and workers.

    `bleu` (Papineni et al. 2002) and `chrf` (Popović 2015) are sacreBLEU's of the whole corpus, 0 to 100. `rouge1`,
    `rouge2` and `rougeL` (Lin 2004) are torchmetrics' F-measures, means over rows, 0 to 100, on lower-cased runs of letters and
    digits of any script, without stemming. `token_accuracy` and `perplexity` are of the reference's tokens, each predicted from
    those before it.
    """

    def __init__(self, labels: Sequence[str], settings: GenerationSettings) -> None:
        del labels
        self._tokenize = settings.bleu_tokenizer
        self._sums: dict[str, np.ndarray] = {}

    def add(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> None:
        """Of n examples with their `reference`: `text` [n], what was written; or, of the reference's tokens, `nll` [n], the
        sum of -log p, `right` and `tokens` [n], how many are predicted right and how many there are."""
        if "nll" in outputs:
            self._count(
                "tokens", [outputs[name].sum(dtype=np.float64) for name in ("nll", "right", "tokens")]
            )
        if "text" in outputs and len(examples):
            written, wanted = (
                [str(text) for text in texts] for texts in (outputs["text"], examples.truth["reference"])
            )
            self._count("bleu", self._bleu(written, wanted))
            self._count("chrf", _chrf().corpus_statistics(written, wanted))
            self._count("rouge", [*_rouge(written, wanted), len(written)])

    def merge(self, state: str) -> None:
        """Add the `to_json` of another worker."""
        for name, values in json.loads(state).items():
            self._count(name, values)

    def to_json(self) -> str:
        """What was counted."""
        return json.dumps({name: values.tolist() for name, values in self._sums.items()})

    def result(self) -> dict[str, float]:
        """The figures of what was added."""
        found: dict[str, float] = {}
        if "tokens" in self._sums:
            nll, right, tokens = self._sums["tokens"].tolist()
            found["perplexity"] = _exp(nll / max(1.0, tokens))
            found["token_accuracy"] = right / max(1.0, tokens)
        if "bleu" in self._sums:
            found["bleu"] = self._corpus_bleu(self._sums["bleu"].astype(np.int64).tolist())
            found["chrf"] = _chrf().score(self._sums["chrf"].tolist())
            *sums, rows = self._sums["rouge"].tolist()
            found |= {name: 100 * total / rows for name, total in zip(_ROUGES, sums, strict=True)}
        return found

    def _count(self, name: str, values: Any) -> None:
        found = np.asarray(values, np.float64)
        self._sums[name] = self._sums[name] + found if name in self._sums else found

    def _bleu(self, written: list[str], wanted: list[str]) -> list[int]:
        """Tokens written and wanted, matches and n-grams of every order."""
        found = self._metric().corpus_score(written, [wanted])
        return [found.sys_len, found.ref_len, *found.counts, *found.totals]

    def _corpus_bleu(self, sums: list[int]) -> float:
        metric = self._metric()
        return metric.compute_bleu(
            correct=sums[2 : 2 + _ORDER],
            total=sums[2 + _ORDER :],
            sys_len=sums[0],
            ref_len=sums[1],
            smooth_method=metric.smooth_method,
        ).score

    def _metric(self) -> Any:
        from sacrebleu.metrics.bleu import BLEU

        return BLEU(tokenize=self._tokenize, force=True)


def _chrf() -> Any:
    """sacreBLEU's chrF with its sums in reach: it has no public way to them, unlike its BLEU."""
    from sacrebleu.metrics.chrf import CHRF

    class Chrf(CHRF):
        def corpus_statistics(self, written: list[str], wanted: list[str]) -> np.ndarray:
            return np.sum(self._extract_corpus_statistics(written, [wanted]), axis=0)

        def score(self, sums: list[float]) -> float:
            return self._compute_score_from_stats(sums).score

    return Chrf()


def _rouge(written: list[str], wanted: list[str]) -> list[float]:
    """The sums of the F-measures over rows."""
    from torchmetrics.functional.text.rouge import rouge_score

    found = rouge_score(
        written,
        [[text] for text in wanted],
        rouge_keys=_ROUGES,
        normalizer=str.lower,
        tokenizer=_WORD.findall,
    )
    return [float(found[f"{name}_fmeasure"]) * len(written) for name in _ROUGES]


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
