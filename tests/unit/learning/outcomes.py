"""Made-up outcomes whose rule is known: long questions need the strong model, short ones do not."""

from __future__ import annotations

import csv
import random
from pathlib import Path

WORDS = "apple river stone cloud engine paper garden window market summer doctor music bridge letter".split()  # noqa: SIM905


def rows(many: int = 240, seed: int = 0) -> list[dict[str, str]]:
    made = random.Random(seed)
    found = []
    for number in range(many):
        hard = number % 2 == 0
        words = made.choices(WORDS, k=made.randint(25, 40) if hard else made.randint(4, 8))
        weak = float(made.random() > (0.8 if hard else 0.1))
        found.append(
            {
                "prompt": f"Case {number}: {' '.join(words)}?",
                "weak": f"{weak}",
                "middle": f"{(weak + 1) / 2}",
                "strong": f"{float(made.random() > 0.1)}",
                "task": "long" if hard else "short",
            }
        )
    return found


def write(path: Path, made: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(made[0]))
        writer.writeheader()
        writer.writerows(made)
    return path
