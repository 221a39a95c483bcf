"""Scorers of longer texts, by how they resemble reference answers: ROUGE-L, and embeddings where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
import math
from functools import lru_cache
from importlib.resources import files
from typing import Any, ClassVar, Literal

from rouge_score_rs.rouge_scorer import RougeScorer
from tokenizers import Tokenizer

from tieryard.golden.scorers.base import Score, Scorer, Unfit, Wanted, shown, texts

EMBEDDER = "wordllama"
_MOST_CHARACTERS = 100_000


class RougeL(Scorer):
    """ROUGE-L's F1 against the reference that it resembles most: P = LCS / words of the answer, R = LCS / words of the
    reference, F1 = 2PR / (P + R), with LCS the length of their longest common subsequence (Lin 2004, W04-1013).

    By the package `rouge-score-rs`, which gives what Google's `rouge-score` does: words are a–z and 0–9 in lower case,
    by default stemmed (Porter). The value is the one over the whole answer, not by sentences (ROUGE-Lsum).
    """

    compares: ClassVar[str] = "references"
    name: Literal["rouge_l"] = "rouge_l"
    stemmer: bool = True

    def check(self, wanted: Wanted) -> None:
        for text in texts(wanted.references, "references"):
            if not any(c.isascii() and c.isalnum() for c in text):
                raise Unfit(
                    "references", f"{shown(text)} has none of a–z and 0–9, all that ROUGE-L reads; use token_f1"
                )

    def rate(self, answer: str, wanted: Wanted) -> Score:
        found = _rouge(self.stemmer).score_multi(list(wanted.references), answer)["rougeL"]
        value = min(max(float(found.fmeasure), 0.0), 1.0)
        return Score(value, f"precision {found.precision:.3f}, recall {found.recall:.3f}")


@lru_cache(maxsize=2)
def _rouge(stemmer: bool) -> Any:
    return RougeScorer(["rougeL"], use_stemmer=stemmer)


class Similarity(Scorer):
    """The cosine of the embeddings of answer and reference, 0 where it is negative; the best of several references.

    A text's embedding is the mean of its tokens' vectors, which the package `wordllama` ships (static, 256 dimensions)
    and which are read without a network. It tells what a text is about, hardly what it says of it: a sentence and its
    denial are much alike. Of long texts the first 100,000 characters count.
    """

    compares: ClassVar[str] = "references"
    name: Literal["similarity"] = "similarity"

    def check(self, wanted: Wanted) -> None:
        if importlib.util.find_spec(EMBEDDER) is None:
            raise Unfit("scorer", f"similarity needs the package {EMBEDDER}: pip install 'tieryard[similarity]'")
        for text in texts(wanted.references, "references"):
            if not text.strip():
                raise Unfit("references", "a reference is empty; write a good answer")

    def rate(self, answer: str, wanted: Wanted) -> Score:
        if not answer.strip():
            return Score(0.0, "the answer is empty")
        given = _unit(answer)
        value = max(float(given @ _unit(text)) for text in wanted.references)
        value = round(min(max(value, 0.0), 1.0), 6)  # the seventh digit is noise of single precision
        return Score(value, f"cosine {value:.3f}")


def _unit(text: str) -> Any:
    """[256] of length 1, or zeros."""
    [vector] = _embedder().embed([text[:_MOST_CHARACTERS]])
    length = math.sqrt(float(vector @ vector))
    return vector / length if length else vector


@lru_cache(maxsize=1)
def _embedder() -> Any:
    """Not by `WordLlama.load()`: it looks for the tokenizer in a folder that the wheel does not have, then online."""
    inference = importlib.import_module("wordllama.inference")
    safetensors = importlib.import_module("safetensors.numpy")
    shipped = files(EMBEDDER)
    [weights] = safetensors.load((shipped / "weights" / "l2_supercat_256.safetensors").read_bytes()).values()
    tokenizer = (shipped / "tokenizers" / "l2_supercat_tokenizer_config.json").read_text(encoding="utf-8")
    return inference.WordLlamaInference(weights, Tokenizer.from_str(tokenizer))
