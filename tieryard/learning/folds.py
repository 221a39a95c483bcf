"""Folds for held-out evidence: rows of one group never stand on both sides."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from tieryard.learning.tables import normalized


def prompt_groups(prompts: Sequence[str]) -> list[str]:
    """The group of each prompt: near-duplicates share one."""
    return [normalized(prompt) for prompt in prompts]


def folds(groups: Sequence[str], many: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """(rows to train on, rows held out), `many` times or once a group, whichever is less; sizes as even as the groups
    allow. Deterministic by `seed`."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows[group].append(row)
    names = sorted(rows)
    random.Random(seed).shuffle(names)  # noqa: S311 – folds, not secrets
    names.sort(key=lambda name: -len(rows[name]))
    held: list[list[int]] = [[] for _ in range(min(many, len(names)))]
    for name in names:
        min(held, key=len).extend(rows[name])
    return [(sorted(set(range(len(groups))).difference(out)), sorted(out)) for out in held]
