"""The gate with its measurements: two quality runs on the same golden items in, a verdict by category out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tieryard.bench.gate import CategoryVerdict, Outcome, Paired, Verdict, judge_gate
from tieryard.catalog import Catalog
from tieryard.catalog.benchmarks import Gate
from tieryard.errors import UserError
from tieryard.ids import public
from tieryard.routing.trials import Promotion
from tieryard.store import Store, golden, trials
from tieryard.store.benchmarks import KIND, RunKind

_MAY_LACK = 0.05
"""Of the items, such as have no score on one side. More of them would make it another comparison."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Two runs on one golden set, by id."""

    golden_set: str
    serving: int
    candidate: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gate says of a candidate, by which runs. `unscored` items had no score on one side: they count as wrong
    where it was the candidate's, and not at all otherwise."""

    candidate: str
    serving: str
    build: str
    verdict: Verdict
    runs: tuple[Runs, ...]
    unscored: int

    @property
    def accepted(self) -> frozenset[str]:
        return frozenset(c.category for c in self.verdict.categories if c.outcome is Outcome.ACCEPTED)

    def promotion(self, held: Promotion | None) -> Promotion:
        """Where it is accepted now. What it `held` before it keeps where this says nothing against it."""
        kept: frozenset[str] = frozenset()
        if held is not None and (held.serving, held.build) == (self.serving, self.build):
            kept = held.categories - {c.category for c in self.verdict.categories if c.outcome is Outcome.WORSE}
        return Promotion(self.candidate, self.serving, self.build, self.accepted | kept)

    def stored(self) -> dict[str, Any]:
        """As JSON, to be kept with the promotion."""
        runs = [
            {"golden_set": r.golden_set, "serving": public(KIND, r.serving), "candidate": public(KIND, r.candidate)}
            for r in self.runs
        ]
        return {"runs": runs, "unscored": self.unscored, **asdict(self.verdict)}


def serving_of(catalog: Catalog, candidate: str) -> str:
    """What a candidate may take jobs beside. Raises UserError where it is none."""
    known = catalog.deployments.get(candidate)
    if known is None:
        raise UserError(f"the catalog in force has no deployment '{candidate}'")
    if known.candidate_of is None:
        raise UserError(
            f"'{candidate}' is no candidate: set candidate_of in its deployment to the one beside which it is to serve"
        )
    return known.candidate_of


def judge(
    store: Store,
    catalog: Catalog,
    candidate: str,
    *,
    sets: Sequence[str] = (),
    categories: Collection[str] = (),
    allowed_drop: float | None = None,
) -> Judgement:
    """By the newest runs of both builds on each golden set, of these names or all that the candidate has answered.
    Raises UserError, which says what to run where runs are missing."""
    serving = serving_of(catalog, candidate)
    runs = _runs(store, catalog, (serving, candidate), sets)
    pairs: list[Paired] = []
    unscored = 0
    for run in runs:
        found, lacking = paired(store, run.serving, run.candidate, prefix=f"{run.golden_set}/")
        pairs, unscored = pairs + found, unscored + lacking
    if categories:
        pairs = [pair for pair in pairs if pair.category in categories]
    gate = catalog.benchmarks.gate
    if allowed_drop is not None:
        gate = gate.model_copy(update={"allowed_drop": allowed_drop})
    verdict = verdict_of(pairs, gate, categories=categories)
    return Judgement(candidate, serving, catalog.deployments[candidate].build, verdict, tuple(runs), unscored)


def paired(store: Store, before: int, after: int, *, prefix: str = "") -> tuple[list[Paired], int]:
    """Two runs' scores of the same items, and how many had none on one side: of the later run that is a wrong answer,
    of the earlier one no item. Raises UserError where these are too many, or other judges have judged."""
    with store.transaction() as connection:
        judges = [trials.judges(connection, run) for run in (before, after)]
    if judges[0] != judges[1]:
        named = " and ".join(public(KIND, run) for run in (before, after))
        raise UserError(f"{named} were scored by different judges: run both again")
    found = golden.pairs(store, before, after)
    lacking = sum(pair.first is None or pair.second is None for pair in found)
    if found and lacking > _MAY_LACK * len(found):
        named = " or ".join(public(KIND, run) for run in (before, after))
        raise UserError(f"{lacking} of {len(found)} items have no score in {named}: see why, and run that again")
    return [
        Paired(f"{prefix}{pair.item_id}", pair.category, pair.first, pair.second or 0.0)
        for pair in found
        if pair.first is not None
    ], lacking


def verdict_of(pairs: Sequence[Paired], gate: Gate, *, categories: Collection[str] = ()) -> Verdict:
    """By the catalog's gate; its floors hold where there are items. Raises UserError."""
    there = {pair.category for pair in pairs}
    floors = {category: floor for category, floor in gate.floors.items() if category in there}
    return judge_gate(pairs, allowed_drop=gate.allowed_drop, alpha=gate.alpha, floors=floors, categories=categories)


def worse_in(verdict: Verdict) -> list[CategoryVerdict]:
    """The categories in which it is shown to be worse."""
    return [one for one in verdict.categories if one.outcome is Outcome.WORSE]


def _runs(store: Store, catalog: Catalog, both: tuple[str, str], names: Sequence[str]) -> list[Runs]:
    known = {row.id: row.name for row in golden.list_sets(store)}
    with store.transaction() as connection:
        serving, candidate = (
            {
                known[set_id]: run_id
                for run_id, _, set_id, _ in trials.last_runs(
                    connection, name, catalog.deployments[name].build, kinds=[RunKind.QUALITY]
                )
                if set_id in known
            }
            for name in both
        )
    if not known:
        raise UserError("there is no golden set yet: tieryard golden import FILE")
    wanted = list(dict.fromkeys(names)) or sorted(candidate or known.values())
    if unknown := [name for name in wanted if name not in known.values()]:
        raise UserError(f"no golden set '{unknown[0]}'; `tieryard golden list` shows them")
    lacking = {
        name: [s for s in wanted if s not in runs] for name, runs in zip(both, (serving, candidate), strict=True)
    }
    if any(lacking.values()):
        raise UserError("; ".join(_to_run(name, missing) for name, missing in lacking.items() if missing))
    return [Runs(name, serving[name], candidate[name]) for name in wanted]


def _to_run(deployment: str, missing: list[str]) -> str:
    of = ",".join(missing)
    run = f"tieryard golden run {of} --models {deployment}"
    return f"{deployment}, as the catalog has it now, has not answered {of}: {run}"
