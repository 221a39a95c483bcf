"""Measures the fleet: load and its figures, and whether a candidate is as good as what serves now."""

from tieryard.bench.capacity import Capacity, Probe, SearchEnd, probing, search_capacity
from tieryard.bench.figures import Figures, Goodput, Rent, Slos, measure, to_profile
from tieryard.bench.gate import CategoryVerdict, Outcome, Paired, Rule, Scores, Verdict, judge_gate, judge_scores
from tieryard.bench.load import Closed, Open, Run, Sampled, Shape, YieldTo, run_load
from tieryard.bench.percentiles import Spread
from tieryard.bench.ranking import Below, Place, Ranking, Standing, frontier, picture, rank
from tieryard.bench.stats import (
    Interval,
    SwapConsistency,
    cohen_kappa,
    items_needed,
    items_to_accept,
    mcnemar_exact,
    paired_bootstrap,
    swap_consistency,
    wilson,
)
from tieryard.bench.trace import TokenSource, Trace

__all__ = [
    "Below",
    "Capacity",
    "CategoryVerdict",
    "Closed",
    "Figures",
    "Goodput",
    "Interval",
    "Open",
    "Outcome",
    "Paired",
    "Place",
    "Probe",
    "Ranking",
    "Rent",
    "Rule",
    "Run",
    "Sampled",
    "Scores",
    "SearchEnd",
    "Shape",
    "Slos",
    "Spread",
    "Standing",
    "SwapConsistency",
    "TokenSource",
    "Trace",
    "Verdict",
    "YieldTo",
    "cohen_kappa",
    "frontier",
    "items_needed",
    "items_to_accept",
    "judge_gate",
    "judge_scores",
    "mcnemar_exact",
    "measure",
    "paired_bootstrap",
    "picture",
    "probing",
    "rank",
    "run_load",
    "search_capacity",
    "swap_consistency",
    "to_profile",
    "wilson",
]
