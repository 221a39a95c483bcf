"""A candidate takes jobs where it is promoted and nowhere else; a canary takes its share, and what it counts by."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from decimal import Decimal

import orjson
import pytest

from tests import factories as make
from tieryard.catalog import SizeClass, parse_catalog
from tieryard.replay import under
from tieryard.routing import (
    Decision,
    JobFeatures,
    PolicyRules,
    Profile,
    Rules,
    Snapshot,
    TextFeatures,
    TierRules,
    decide,
    decide_many,
)
from tieryard.routing.snapshot import Bounds
from tieryard.routing.trials import Canary, Promotion, Trials

QUALITY = {"extraction": (0.90, 0.90), "reasoning": (0.80, 0.65)}
"""Of the serving deployment and of the AWQ build, which drops 15 points on reasoning, as golden runs scored them."""

CATALOG = """
version: 1
tiers: {batch: {window: 24h}}
categories: [extraction, reasoning]
deployments:
  big:
    model: acme/big
    revision: "1"
    size_class: large
    engine: {kind: instant}
    context_limit: 4096
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 1.00, output_usd_per_1m: 4.00}
  awq:
    model: acme/big-awq
    revision: "1"
    quantization: awq
    candidate_of: big
    size_class: large
    engine: {kind: instant}
    context_limit: 4096
    max_in_flight: 8
    tokenizer: utf8
    price: {input_usd_per_1m: 0.40, output_usd_per_1m: 1.60}
"""


def profile(quality: float) -> Profile:
    return Profile(200, 1.0, ttft_ms=100.0, tpot_ms=5.0, output_tokens=8.0, quality_score=quality, quality_samples=200)


BIG = make.candidate(
    "big",
    size_class=SizeClass.LARGE,
    input_usd_per_1m=Decimal("1.00"),
    output_usd_per_1m=Decimal("4.00"),
    capacity=8,
    profiles={category: profile(scores[0]) for category, scores in QUALITY.items()},
)
AWQ = replace(
    BIG,
    name="awq",
    input_usd_per_1m=Decimal("0.40"),
    output_usd_per_1m=Decimal("1.60"),
    named_only=True,
    candidate_of="big",
    profiles={category: profile(scores[1]) for category, scores in QUALITY.items()},
)


def promoted(*categories: str) -> Trials:
    return Trials((Promotion("awq", "big", "b", frozenset(categories)),))


def on_trial(share: float, *categories: str, serving: str = "big") -> Trials:
    return Trials(canaries=(Canary("awq", serving, "b", share, frozenset(categories) or None),))


def fleet(trials: Trials, *candidates: object, **rules: object) -> Snapshot:
    return make.snapshot(*(candidates or (BIG, AWQ)), rules=Rules(trials=trials, **rules))  # type: ignore[arg-type]


def job(category: str = "extraction", *, draw: float = 0.5, model: str = "auto", **more: object) -> JobFeatures:
    text = TextFeatures(category, SizeClass.SMALL, "short and plain", 2, has_code=False)
    return JobFeatures(text, model, {"t": 10}, 16, draw=draw, **more)  # type: ignore[arg-type]


def why(decision: Decision, name: str) -> str:
    return next(judged.why for judged in decision.judged if judged.name == name)


# --- promotion --------------------------------------------------------------------------------------------


def test_a_candidate_that_is_not_promoted_takes_only_jobs_that_name_it() -> None:
    for model in ("auto", "class:large"):
        decision = decide(job(model=model), fleet(Trials()))
        assert decision.deployment == "big"
        assert why(decision, "awq") == "is a candidate of big, not promoted in extraction"
    assert decide(job(model="awq"), fleet(Trials())).deployment == "awq"


def test_a_build_that_drops_on_reasoning_is_used_for_extraction_alone() -> None:
    """The gate has accepted it in extraction, by the golden runs that the profiles are of."""
    found = {category: decide(job(category), fleet(promoted("extraction"))) for category in QUALITY}
    assert {category: decision.deployment for category, decision in found.items()} == {
        "extraction": "awq",
        "reasoning": "big",
    }
    assert found["extraction"].reason.endswith("cheapest of 2 that qualify")
    assert why(found["reasoning"], "awq") == "is a candidate of big, not promoted in reasoning"


def test_where_it_is_promoted_its_measured_quality_still_decides() -> None:
    """Promoted in both, by a wide gate: a floor of reasoning keeps it out there, and so does what quality is worth."""
    both = promoted("extraction", "reasoning")
    floors = {"extraction": 0.7, "reasoning": 0.7}
    for category, expected in (("extraction", "awq"), ("reasoning", "big")):
        assert decide(job(category), fleet(both, floors=floors)).deployment == expected
        learned = job(category, hardness=0.0)
        assert decide(learned, fleet(both, classifier="learned", quality_worth=0.1)).deployment == expected


def test_the_learned_model_decides_whatever_is_known_of_a_candidate_that_may_not_be_chosen() -> None:
    unknown = replace(AWQ, profiles={})
    asked = job(hardness=0.0)
    assert decide(asked, fleet(Trials(), BIG, unknown, classifier="learned")).reason.startswith("predicted quality")
    assert not decide(asked, fleet(promoted("extraction"), BIG, unknown, classifier="learned")).reason.startswith(
        "pred"
    )


def test_a_promotion_holds_for_its_build_and_beside_what_it_was_compared_with() -> None:
    catalog = parse_catalog(CATALOG)
    build = catalog.deployments["awq"].build
    told = Trials((Promotion("awq", "big", build, frozenset({"extraction"})),), (Canary("awq", "big", build, 0.05),))
    assert told.holding(catalog) == told
    assert (
        told.holding(
            parse_catalog(CATALOG.replace('acme/big-awq\n    revision: "1"', 'acme/big-awq\n    revision: "2"'))
        )
        == Trials()
    )
    assert told.holding(parse_catalog(CATALOG.replace("quantization: awq\n", "quantization: gptq\n"))) == Trials()
    assert told.holding(parse_catalog(CATALOG.replace("    candidate_of: big\n", ""))) == Trials()
    snapshot = Snapshot.of(catalog, trials=told)
    assert snapshot.rules.trials == told
    assert under(parse_catalog(CATALOG.replace("utf8", "utf8", 1)), snapshot).rules.trials == told
    newer = parse_catalog(CATALOG.replace("quantization: awq\n", "quantization: gptq\n"))
    assert under(newer, snapshot).rules.trials == Trials(), "a build that nobody has measured"


# --- canaries ---------------------------------------------------------------------------------------------

DRAWS = [i / 4096 for i in range(4096)]


def shares(snapshot: Snapshot, **more: object) -> Counter[tuple[str | None, str]]:
    decisions = decide_many([job(draw=draw, **more) for draw in DRAWS], snapshot)  # type: ignore[arg-type]
    return Counter((d.deployment, d.canary) for d in decisions)


def test_a_canary_takes_its_share_and_is_compared_with_as_many() -> None:
    found = shares(fleet(on_trial(0.05)))
    assert found["awq", "awq"] == pytest.approx(0.05 * len(DRAWS), rel=0.02)
    assert found["big", "awq"] == pytest.approx(0.05 * len(DRAWS), rel=0.02)
    assert found["big", ""] == len(DRAWS) - found["awq", "awq"] - found["big", "awq"]


def test_a_canary_of_all_takes_all() -> None:
    assert shares(fleet(on_trial(1.0))) == {("awq", "awq"): len(DRAWS)}


def test_two_canaries_share_the_jobs_out() -> None:
    other = replace(AWQ, name="gptq")
    two = (Canary("awq", "big", "b", 0.1), Canary("gptq", "big", "b", 0.2))
    found = shares(fleet(Trials(canaries=two), BIG, AWQ, other))
    for name, share in (("awq", 0.1), ("gptq", 0.2)):
        assert found[name, name] == pytest.approx(share * len(DRAWS), rel=0.02)
        assert found["big", name] == pytest.approx(share * len(DRAWS), rel=0.02)


def test_what_a_canary_takes_is_said() -> None:
    taken = next(d for d in decide_many([job(draw=x) for x in DRAWS], fleet(on_trial(0.05))) if d.deployment == "awq")
    assert taken.reason == "canary of big: takes 5.0% of its jobs"
    assert why(taken, "awq") == ""
    assert why(taken, "big") == taken.reason
    judged = next(j for j in taken.judged if j.name == "awq")
    assert (judged.fits, judged.qualifies) == (True, True)
    assert taken.extra_usd == 0, "it is no exploring"


@pytest.mark.parametrize(
    ("snapshot", "asked"),
    [
        (fleet(on_trial(1.0, "reasoning")), {}),
        (fleet(on_trial(1.0, serving="other")), {}),
        (fleet(on_trial(1.0)), {"tier": "realtime"}),
        (fleet(on_trial(1.0)), {"model": "big"}),
        (fleet(on_trial(1.0)), {"needs": frozenset({"tools"})}),
        (fleet(on_trial(1.0), policies={"acme": PolicyRules(frozenset({"big"}))}), {"policy": "acme"}),
        (fleet(on_trial(1.0), BIG, replace(AWQ, live=False)), {}),
        (fleet(on_trial(1.0), BIG, replace(AWQ, broken="its circuit breaker is open")), {}),
        (fleet(on_trial(1.0), BIG, replace(AWQ, broken="half open", probing=True)), {}),
        (fleet(on_trial(1.0), BIG, replace(AWQ, in_flight=8)), {}),
        (fleet(on_trial(1.0), BIG, replace(AWQ, context_limit=20)), {}),
        (fleet(on_trial(1.0), BIG, replace(AWQ, size_class=SizeClass.MEDIUM)), {"model": "class:large"}),
        (fleet(on_trial(1.0), BIG, replace(AWQ, profiles={}), floors={"extraction": 0.86}), {}),
        (
            fleet(
                on_trial(1.0),
                BIG,
                replace(AWQ, profiles={"extraction": Profile(50, 1.0, ttft_ms=9000.0)}),
                tiers={"interactive": TierRules(Bounds(max_ttft_ms=1000.0))},
            ),
            {"tier": "interactive"},
        ),
        (fleet(on_trial(1.0), replace(BIG, live=False), AWQ), {}),
    ],
    ids=[
        "category", "serving", "realtime", "pinned", "capability", "policy", "down", "broken", "probing", "full",
        "context", "class", "floor", "too slow", "serving down",
    ],
)  # fmt: skip
def test_what_a_canary_leaves_alone_counts_on_neither_side(snapshot: Snapshot, asked: dict[str, object]) -> None:
    bigger = (
        snapshot
        if "needs" not in asked
        else replace(snapshot, candidates=(replace(BIG, capabilities=frozenset({"tools"})), AWQ))
    )
    assert set(shares(bigger, **asked)) == {("big", "")}


def test_a_stored_decision_is_made_again_the_same() -> None:
    both = Trials(promoted("reasoning").promotions, on_trial(0.3, "extraction").canaries)
    snapshot = fleet(both)
    again = Snapshot.from_json(orjson.loads(snapshot.to_json()))
    assert again == snapshot
    asked = [job(category, draw=draw) for category in QUALITY for draw in DRAWS[::16]]
    stored = [JobFeatures.from_dict(orjson.loads(orjson.dumps(one.stored(), default=str))) for one in asked]
    assert [(d.deployment, d.reason, d.canary) for d in decide_many(stored, again)] == [
        (d.deployment, d.reason, d.canary) for d in decide_many(asked, snapshot)
    ]


def test_a_snapshot_of_before_there_were_trials_is_read() -> None:
    body = orjson.loads(fleet(Trials(), BIG).to_json())
    del body["rules"]["trials"]
    for candidate in body["candidates"]:
        del candidate["candidate_of"]
    assert Snapshot.from_json(body) == fleet(Trials(), BIG)


def test_what_a_benchmark_has_found_wrong_is_named() -> None:
    changed = replace(profile(0.9), regressed="worse than at its last run", drifted="version was 1 and is 2")
    decision = decide(job(), fleet(Trials(), replace(BIG, profiles={"extraction": changed})))
    assert "big has regressed on extraction: worse than at its last run" in decision.notes
    assert "big is no longer what was measured: version was 1 and is 2" in decision.notes
