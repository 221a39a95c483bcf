"""Decisions: never beyond what a deployment can take, then the cheapest that qualifies; and always explained."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import factories as make
from tieryard.catalog import SizeClass
from tieryard.routing import (
    Bounds,
    Candidate,
    Hurdle,
    JobFeatures,
    PolicyRules,
    Profile,
    Rules,
    Snapshot,
    TextFeatures,
    TierRules,
    decide,
    decide_many,
    plain,
)

SIZES = st.sampled_from(SizeClass)
CAPABILITIES = st.frozensets(st.sampled_from(["json_schema", "tools", "logprobs"]))
usd = st.decimals(min_value=0, max_value=100, places=6)
share = st.floats(0, 1)
NAMES = ["a", "b", "c", "d", "e"]
names = st.frozensets(st.sampled_from(NAMES))
some_ms = st.none() | st.floats(0, 1e5)

profiles = st.builds(
    Profile,
    st.integers(0, 200),
    st.floats(0, 2e9),
    ttft_ms=some_ms,
    ttft_p95_ms=some_ms,
    tpot_ms=some_ms,
    throughput_tps=st.none() | st.floats(0, 1e4),
    output_tokens=st.none() | st.floats(0, 3000),
    error_rate=st.none() | share,
    quality_score=st.none() | share,
    stale=st.booleans(),
)
bounds = st.builds(
    Bounds,
    some_ms,
    some_ms,
    st.none() | usd,
    st.none() | share,
    st.none() | share,
    st.none() | st.sampled_from(NAMES),
)
rules = st.builds(
    Rules,
    tiers=st.dictionaries(
        st.sampled_from(["bulk", "realtime"]),
        st.builds(TierRules, bounds, st.booleans(), st.booleans(), st.floats(0, 1e5)),
    ),
    policies=st.dictionaries(
        st.just("acme"),
        st.builds(PolicyRules, st.none() | names, st.none() | st.just(frozenset({"eu"})), st.none() | share,
                  st.none() | usd),
    ),
    floors=st.dictionaries(st.just("chat"), share),
    classifier=st.sampled_from(["rules", "learned"]),
    explore_share=st.sampled_from([0.0, 0.2]),
    explore_tiers=st.just(frozenset({"bulk"})),
)  # fmt: skip


@st.composite
def candidates(draw: st.DrawFn, name: str) -> Candidate:
    return make.candidate(
        name,
        size_class=draw(SIZES),
        context_limit=draw(st.integers(min_value=1, max_value=3000)),
        tokenizer=draw(st.sampled_from(["t", "u"])),
        capabilities=draw(CAPABILITIES),
        input_usd_per_1m=draw(usd),
        output_usd_per_1m=draw(usd),
        live=draw(st.booleans()),
        capacity=draw(st.integers(0, 8)),
        backlog=draw(st.integers(0, 9)),
        quality=draw(st.none() | share),
        region=draw(st.sampled_from([None, "eu", "us"])),
        awaited=draw(st.booleans()),
        broken=draw(st.sampled_from(["", "", "its circuit breaker is open"])),
        probing=draw(st.booleans()),
        profiles=draw(st.dictionaries(st.sampled_from(["chat", "code"]), profiles)),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    found = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5))
    return make.snapshot(*[draw(candidates(name)) for name in found], rules=draw(rules))


jobs = st.builds(
    JobFeatures,
    text=st.builds(TextFeatures, st.just("chat"), SIZES, st.text(max_size=9), st.integers(0, 99), st.booleans()),
    model=st.sampled_from(["auto", "auto", "class:small", "class:large", *NAMES]),
    prompt_tokens=st.fixed_dictionaries({"t": st.integers(0, 2000), "u": st.integers(0, 2000)}),
    max_tokens=st.integers(1, 2000),
    needs=CAPABILITIES,
    tier=st.sampled_from(["", "bulk", "realtime"]),
    bounds=st.none() | bounds,
    max_cost_usd=st.none() | usd,
    policy=st.sampled_from(["", "acme"]),
    due_in_s=st.none() | st.floats(-10, 1e5),
    hardness=st.none() | st.floats(-6, 6),
    predicted=st.dictionaries(st.sampled_from(NAMES), share),
    sticky=st.sampled_from(["", *NAMES]),
    draw=st.floats(0, 1, exclude_max=True),
)


def worst_cost(job: JobFeatures, c: Candidate) -> Decimal:
    prompt = job.prompt_tokens[c.tokenizer]
    return (c.input_usd_per_1m * prompt + c.output_usd_per_1m * job.max_tokens) / 1_000_000


def can_take(job: JobFeatures, c: Candidate, rules: Rules) -> bool:
    """What makes a candidate able, said once more and differently."""
    policy = rules.policies.get(job.policy, PolicyRules())
    caps = [cap for cap in (job.max_cost_usd, policy.max_cost_usd) if cap is not None]
    return (
        job.model in ("auto", c.name, f"class:{c.size_class}")
        and job.needs <= c.capabilities
        and c.context_limit >= job.max_tokens + job.prompt_tokens[c.tokenizer]
        and (policy.models is None or c.name in policy.models)
        and (policy.regions is None or c.region in policy.regions)
        and all(worst_cost(job, c) <= cap for cap in caps)
    )


@given(jobs, snapshots())
def test_a_decision_never_exceeds_context_cap_capability_or_policy(job: JobFeatures, known: Snapshot) -> None:
    able = {c.name for c in known.candidates if can_take(job, c, known.rules)}
    decision = decide(job, known)
    if decision.deployment is None:
        assert not able or decision.defer_s > 0
    else:
        assert decision.deployment in able
    assert decision.reason
    assert {j.name for j in decision.judged if j.fits} == able
    assert {j.name for j in decision.judged if j.qualifies} <= able


@given(jobs, snapshots())
def test_every_loser_is_told_why_and_the_winner_is_not(job: JobFeatures, known: Snapshot) -> None:
    decision = decide(job, known)
    assert [j.name for j in decision.judged] == [c.name for c in known.candidates]
    for judged in decision.judged:
        assert bool(judged.why) == (judged.name != decision.deployment)


@given(jobs, snapshots())
def test_it_is_a_fallback_just_when_what_is_chosen_does_not_qualify(job: JobFeatures, known: Snapshot) -> None:
    decision = decide(job, known)
    qualify = [j.name for j in decision.judged if j.qualifies]
    if decision.deployment is None or job.pinned:
        assert not decision.fallback
    elif qualify:
        assert decision.deployment in qualify
        assert not decision.fallback
    else:
        live = any(c.live for c in known.candidates if can_take(job, c, known.rules))
        assert decision.fallback == live


@given(jobs, snapshots())
def test_nothing_that_qualifies_would_have_been_cheaper(job: JobFeatures, known: Snapshot) -> None:
    """But for what is sent to explore, to a cache, or beside a deployment that cannot do all that is due."""
    tier = known.rules.tiers.get(job.tier, TierRules())
    calm = replace(known.rules, explore_share=0.0, tiers={job.tier: replace(tier, needed_tps=0.0)})
    decision = decide(replace(job, sticky=""), replace(known, rules=calm))
    costs = {j.name: j.cost_usd for j in decision.judged if j.qualifies}
    if decision.deployment in costs and not job.pinned:
        assert costs[decision.deployment] == min(costs.values())


@given(jobs, snapshots(), candidates("cheap"), st.decimals(min_value=Decimal("0.000001"), max_value=9, places=6))
def test_the_cheaper_never_loses_to_the_dearer_when_all_else_is_equal(
    job: JobFeatures, known: Snapshot, cheap: Candidate, more: Decimal
) -> None:
    dear = replace(cheap, name="dear", output_usd_per_1m=cheap.output_usd_per_1m + more)
    both = replace(known, candidates=(*known.candidates, dear, cheap))
    job = replace(job, model="auto", sticky="", predicted={})
    if decide(job, both).explored:
        return
    tier = known.rules.tiers.get(job.tier, TierRules())
    both = replace(both, rules=replace(both.rules, tiers={job.tier: replace(tier, needed_tps=0.0)}))
    assert decide(job, both).deployment != "dear"


@given(jobs, snapshots())
def test_any_missing_or_stale_profile_is_named(job: JobFeatures, known: Snapshot) -> None:
    decision = decide(job, known)
    fit = {j.name for j in decision.judged if j.fits}
    for c in known.candidates:
        own = c.profiles.get(job.text.category)
        lacking = own is None or own.samples == 0 or own.stale or own.ttft_ms is None
        if c.name in fit and lacking:
            assert any(note.startswith((f"{c.name} ", f"{c.name}'s")) for note in decision.notes), decision.notes


def kept(job: JobFeatures) -> JobFeatures:
    """As the store writes it, and reads it."""
    return JobFeatures.from_dict(orjson.loads(orjson.dumps(job.stored(), default=plain)))


@given(jobs, snapshots())
def test_a_stored_decision_can_be_made_again(job: JobFeatures, known: Snapshot) -> None:
    assert kept(job) == job
    body = known.to_json()
    again = Snapshot.from_json(orjson.loads(body))
    assert again == known
    assert again.to_json() == body
    assert decide(kept(job), again) == decide(job, known)


def test_what_is_as_usual_is_not_stored() -> None:
    assert set(make.features().stored()) == {"text", "model", "prompt_tokens", "max_tokens"}


@given(st.lists(jobs, max_size=5), snapshots())
def test_many_are_decided_one_by_one_in_order(several: list[JobFeatures], known: Snapshot) -> None:
    assert decide_many(several, known) == [decide(job, known) for job in several]


SMALL = make.candidate("small", size_class=SizeClass.SMALL)
MEDIUM = make.candidate("medium", size_class=SizeClass.MEDIUM, input_usd_per_1m=Decimal(1))
LARGE = make.candidate("large", size_class=SizeClass.LARGE, input_usd_per_1m=Decimal(9))
CHEAP_LARGE = replace(LARGE, input_usd_per_1m=Decimal("0.05"))


@pytest.mark.parametrize(
    ("wanted", "there", "chosen", "fallback"),
    [
        ("small", [LARGE, MEDIUM, SMALL], "small", False),
        ("small", [LARGE, MEDIUM], "medium", False),
        ("small", [CHEAP_LARGE, SMALL], "large", False),
        ("medium", [LARGE, SMALL], "large", False),
        ("medium", [SMALL], "small", True),
        ("large", [SMALL, MEDIUM], "medium", True),
    ],
)
def test_the_rules_size_is_a_floor(wanted: str, there: list[Candidate], chosen: str, fallback: bool) -> None:
    decision = decide(make.features(wanted=wanted), make.snapshot(*there))
    assert (decision.deployment, decision.fallback) == (chosen, fallback)
    if fallback:
        assert f"asks for {wanted}" in decision.reason


def test_of_equals_the_cheaper_wins_and_then_the_name() -> None:
    dear = make.candidate("a", output_usd_per_1m=Decimal("0.5"))
    decision = decide(make.features(), make.snapshot(dear, SMALL))
    assert decision.deployment == "small"
    assert "expected cost" in decision.judged[0].why
    twins = make.snapshot(make.candidate("y"), make.candidate("x"))
    assert decide(make.features(), twins).deployment == "x"


def test_a_pinned_job_goes_where_it_is_pinned_or_nowhere() -> None:
    known = make.snapshot(SMALL, LARGE)
    assert decide(make.features(model="large"), known).deployment == "large"
    assert decide(make.features(model="large"), known).reason == "pinned to large"
    nowhere = decide(make.features(2000, model="large"), known)
    assert nowhere.deployment is None
    assert "2016 tokens exceed its context of 1000" in nowhere.reason


def test_a_class_restricts_whatever_the_rules_want() -> None:
    known = make.snapshot(SMALL, MEDIUM, LARGE)
    assert decide(make.features(model="class:large", wanted="small"), known).deployment == "large"
    assert decide(make.features(model="class:large"), make.snapshot(SMALL)).deployment is None


def test_a_deployment_that_serves_goes_before_one_that_does_not() -> None:
    idle = make.candidate("idle", live=False, input_usd_per_1m=Decimal(0), output_usd_per_1m=Decimal(0))
    decision = decide(make.features(), make.snapshot(idle, LARGE))
    assert decision.deployment == "large"
    assert decision.judged[0].why == "no replica of it is serving"
    assert decide(make.features(), make.snapshot(idle)).deployment == "idle"


def test_without_any_candidate_there_is_still_a_reason() -> None:
    assert decide(make.features(), make.snapshot()).reason.startswith("no deployment can take it")


def test_the_last_token_that_fits_fits() -> None:
    known = make.snapshot(make.candidate(context_limit=100))
    assert decide(make.features(90, max_tokens=10), known).deployment == "one"
    assert decide(make.features(91, max_tokens=10), known).deployment is None


def test_the_reason_speaks_of_what_the_job_asked_for() -> None:
    known = make.snapshot(SMALL, MEDIUM, LARGE)
    too_long = "prompt + max_tokens = 2016 tokens exceed its context of 1000"
    assert decide(make.features(2000, model="large"), known).reason == f"'large' cannot take it: {too_long}"
    assert decide(make.features(2000), known).reason == f"no deployment can take it: {too_long}"
    of_class = decide(make.features(2000, model="class:small"), known)
    assert of_class.reason == f"no deployment of 'class:small' can take it: {too_long}"
    assert decide(make.features(model="class:large"), make.snapshot(SMALL)).reason.endswith("there is none")
    able = make.candidate("able", capabilities=frozenset({"tools"}), context_limit=9)
    several = decide(make.features(needs=frozenset({"tools"})), make.snapshot(SMALL, able))
    assert several.reason.startswith("no deployment can take it: 'small' lacks tools; 'able' prompt + max_tokens")


def test_the_closest_are_those_that_came_furthest() -> None:
    needs = frozenset({"tools"})
    able = make.candidate("able", capabilities=needs, context_limit=9)
    elsewhere = make.candidate("elsewhere", capabilities=needs, serves=frozenset({"/v1/embeddings"}))
    known = make.snapshot(SMALL, able, elsewhere)
    [closest] = decide(make.features(needs=needs), known).closest
    assert (closest.hurdle, closest.lacks) == (Hurdle.CONTEXT, frozenset())
    [closest] = decide(make.features(needs=needs, model="small"), known).closest
    assert (closest.hurdle, closest.lacks) == (Hurdle.CAPABILITIES, needs)
    assert decide(make.features(), known).closest == ()
    assert [r.hurdle for r in decide(make.features(), known.refusing({"small": "is down"})).closest] == [Hurdle.NOW]


def test_of_two_that_cost_the_same_the_emptier_one_is_taken_and_the_other_told_why() -> None:
    same = {"live": True, "capacity": 8}
    busy = make.candidate("a", **same, in_flight=8, backlog=40)
    idle = make.candidate("b", **same, in_flight=2, kv_usage=0.5)
    decision = decide(make.features(), make.snapshot(busy, idle))
    assert decision.deployment == "b"
    assert decision.judged[0].why == "costs the same; load 6.00 against 0.50"


def test_what_must_be_named_is_chosen_by_no_class() -> None:
    snapshot = make.snapshot(make.candidate("tuned", named_only=True, live=True), make.candidate("zbase"))
    assert decide(make.features(), snapshot).deployment == "zbase"
    assert decide(make.features(model="class:small"), snapshot).deployment == "zbase"
    assert decide(make.features(model="tuned"), snapshot).deployment == "tuned"
    alone = make.snapshot(make.candidate("tuned", named_only=True))
    assert decide(make.features(), alone).deployment is None


# --- the SLO and the floor --------------------------------------------------------------------------------


def profile(**fields: object) -> dict[str, Profile]:
    known = {"ttft_ms": 100.0, "tpot_ms": 10.0, "output_tokens": 50.0, "throughput_tps": 100.0, "quality_score": 0.8}
    return {"chat": Profile(samples=100, timestamp=1.0, **{**known, **fields})}  # type: ignore[arg-type]


def rules_of(tier: str = "realtime", **fields: object) -> Rules:
    return Rules(tiers={tier: TierRules(**fields)})  # type: ignore[arg-type]


def bound(**fields: object) -> Rules:
    return rules_of(bounds=Bounds(**fields))  # type: ignore[arg-type]


QUICK = replace(LARGE, name="quick", profiles=profile(), capacity=4)
SLOW = replace(SMALL, name="slow", profiles=profile(ttft_ms=400.0, tpot_ms=40.0), capacity=4)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"max_ttft_ms": 300.0}, "first token after 400 ms, not 300"),
        ({"max_latency_ms": 1000.0}, "takes 1,000 ms"),
    ],
)
def test_a_slower_one_loses_to_what_keeps_the_slo(asked: dict[str, float], why: str) -> None:
    job = make.features(tier="realtime", max_tokens=16)
    slow = replace(SLOW, profiles=profile(ttft_ms=400.0, tpot_ms=40.01)) if "max_latency_ms" in asked else SLOW
    decision = decide(job, make.snapshot(slow, QUICK, rules=bound(**asked)))
    assert decision.deployment == "quick"
    assert why in decision.judged[0].why
    own = replace(job, bounds=Bounds(max_ttft_ms=5000.0, max_latency_ms=5000.0))
    assert decide(own, make.snapshot(slow, QUICK, rules=bound(**asked))).deployment == "slow"


def test_a_queue_counts_as_waiting_and_not_where_the_slo_starts_at_the_claim() -> None:
    busy = replace(SLOW, profiles=profile(), in_flight=4, backlog=9)  # 10 answers of 50 tokens at 100 a second
    job = make.features(tier="interactive")
    known = make.snapshot(busy, QUICK, rules=rules_of("interactive", bounds=Bounds(max_latency_ms=1000.0)))
    assert decide(job, known).deployment == "quick"
    assert decide(job, known).judged[0].wait_ms == pytest.approx(5000)
    from_claim = rules_of("interactive", bounds=Bounds(max_latency_ms=1000.0), from_claim=True)
    assert decide(job, replace(known, rules=from_claim)).deployment == "slow"
    for first in (replace(job, attended=True), make.features(tier="realtime")):  # these pass what waits
        assert decide(first, replace(known, rules=bound(max_latency_ms=1000.0))).deployment == "slow"


def test_the_length_that_is_expected_is_that_of_the_category_and_at_most_what_was_asked() -> None:
    known = make.snapshot(QUICK)
    assert decide(make.features(max_tokens=500), known).judged[0].output_tokens == 50
    assert decide(make.features(max_tokens=20), known).judged[0].output_tokens == 20
    short = replace(QUICK, profiles=profile(lengths={"realtime": 8.0}))
    assert decide(make.features(tier="realtime", max_tokens=500), make.snapshot(short)).judged[0].output_tokens == 8
    unknown = make.snapshot(make.candidate(profiles={}))
    assert decide(make.features(max_tokens=500), unknown).judged[0].output_tokens == 500


def test_a_floor_is_kept_whoever_sets_it_and_relative_ones_follow_their_deployment() -> None:
    weak = replace(SMALL, name="weak", profiles=profile(quality_score=0.6))
    strong = replace(LARGE, name="strong", profiles=profile(quality_score=0.9))
    for asked in (
        {"rules": bound(min_quality=0.7)},
        {"rules": Rules(floors={"chat": 0.7})},
        {"rules": bound(quality_share=0.8, quality_of="strong")},
    ):
        decision = decide(make.features(tier="realtime"), make.snapshot(weak, strong, **asked))
        assert decision.deployment == "strong"
        assert "predicted quality 0.60, below 0.7" in decision.judged[0].why
    easier = bound(quality_share=0.6, quality_of="strong")
    assert decide(make.features(tier="realtime"), make.snapshot(weak, strong, rules=easier)).deployment == "weak"


def test_what_the_learned_model_says_of_a_prompt_moves_the_choice() -> None:
    weak = replace(SMALL, name="weak", profiles=profile(quality_score=0.6))
    strong = replace(LARGE, name="strong", profiles=profile(quality_score=0.9))
    known = make.snapshot(weak, strong, rules=Rules(classifier="learned"))
    assert decide(make.features(wanted="large", hardness=-4.0), known).deployment == "weak"
    hard = decide(make.features(hardness=2.0), known)
    assert hard.deployment == "strong"
    assert "strong is worth its price" in hard.judged[0].why
    named = make.features(hardness=2.0, predicted={"weak": 0.9, "strong": 0.9})
    assert decide(named, replace(known, candidates=(replace(weak, measured_as="weak"), strong))).deployment == "weak"
    free = [
        replace(c, name=c.name[::-1], input_usd_per_1m=Decimal(0), output_usd_per_1m=Decimal(0)) for c in (weak, strong)
    ]
    assert decide(make.features(hardness=2.0), replace(known, candidates=tuple(free))).deployment == "gnorts"
    stepped_back = replace(known, rules=Rules(classifier="rules", step_back="outcomes contradict it"))
    assert decide(make.features(hardness=2.0), stepped_back).deployment == "weak"


def test_errors_beyond_chance_keep_jobs_away_and_a_few_do_not() -> None:
    failing = replace(SMALL, profiles={"chat": Profile(1000, 1.0, error_rate=0.2)})
    unlucky = replace(SMALL, profiles={"chat": Profile(5, 1.0, error_rate=0.2)})
    assert decide(make.features(draw=0.5), make.snapshot(failing, LARGE)).deployment == "large"
    assert decide(make.features(draw=0.5), make.snapshot(unlucky, LARGE)).deployment == "small"


def test_a_few_jobs_see_whether_one_that_failed_too_often_still_does_and_none_waits_for_it() -> None:
    """Without any its error rate, which only jobs move, would stand for ever."""
    failing = replace(SMALL, profiles={"chat": Profile(1000, 1.0, error_rate=0.2)})
    jobs_due = [make.features(tier="bulk", due_in_s=86_400.0, draw=i / 1000) for i in range(1000)]
    decisions = decide_many(jobs_due, make.snapshot(failing, UP, rules=waiting()))
    assert sum(d.deployment == "small" for d in decisions) == pytest.approx(20, abs=6)
    assert all(d.deployment is not None for d in decisions)
    away = replace(failing, live=False)
    assert not any(d.deployment == "small" for d in decide_many(jobs_due, make.snapshot(away, UP, rules=waiting())))


def test_an_open_breaker_keeps_jobs_away_and_a_half_open_one_lets_a_tenth_through() -> None:
    broken = replace(SMALL, broken="its circuit breaker is open: 7 of 9 starts failed in 30 s")
    decision = decide(make.features(), make.snapshot(broken, LARGE))
    assert decision.deployment == "large"
    assert decision.judged[0].why == broken.broken
    probing = make.snapshot(replace(broken, probing=True), LARGE)
    through = sum(decide(make.features(draw=i / 1000), probing).deployment == "small" for i in range(1000))
    assert 80 <= through <= 120


def test_where_none_qualifies_the_best_that_is_in_time_is_taken_and_else_the_quickest() -> None:
    off = replace(LARGE, name="off", live=False)
    known = make.snapshot(SMALL, LARGE, off, rules=bound(min_quality=0.99))
    decision = decide(make.features(tier="realtime"), known)
    assert (decision.deployment, decision.fallback) == ("large", True)
    assert "none qualifies" in decision.reason
    late = replace(known, rules=bound(max_ttft_ms=1.0))
    assert decide(make.features(tier="realtime"), late).deployment == "small"


def test_where_only_the_price_asked_is_missed_the_cheapest_is_taken() -> None:
    """Who asks for a low price is not sent to the dearest because nobody meets it."""
    dear = replace(LARGE, name="dear", input_usd_per_1m=Decimal(9), output_usd_per_1m=Decimal(9), quality=0.99)
    best = make.snapshot(SMALL, LARGE, dear, rules=bound(max_cost_per_1k=Decimal("0.000001")))
    decision = decide(make.features(tier="realtime"), best)
    assert (decision.deployment, decision.fallback) == ("small", True)
    assert decision.reason.startswith("none qualifies (costs $")
    assert decision.reason.endswith("; small is the cheapest of those that miss only the price")
    asked = make.features(tier="realtime", bounds=Bounds(max_cost_per_1k=Decimal("0.000001")))
    assert decide(asked, replace(best, rules=bound(max_ttft_ms=1e9))).deployment == "small", "whoever sets it"
    floor = bound(max_cost_per_1k=Decimal("0.000001"), min_quality=0.98)
    assert decide(make.features(tier="realtime"), replace(best, rules=floor)).deployment == "dear", "quality holds"
    assert decide(make.features(tier="realtime"), replace(best, rules=bound(max_ttft_ms=1.0))).deployment == "small"
    late = bound(max_cost_per_1k=Decimal("0.000001"), max_ttft_ms=1.0)
    assert decide(make.features(tier="realtime"), replace(best, rules=late)).reason.endswith("is the quickest")


# --- jobs that may wait -----------------------------------------------------------------------------------

DOWN = replace(SMALL, live=False, capacity=0, awaited=True)
UP = replace(LARGE, profiles=profile(throughput_tps=1000.0), capacity=8, live=True)


def waiting(needed_tps: float = 0.0) -> Rules:
    return rules_of("bulk", may_wait=True, needed_tps=needed_tps)


def test_a_job_waits_for_the_cheaper_one_as_long_as_its_deadline_holds() -> None:
    job = make.features(tier="bulk", due_in_s=3600.0, draw=0.5)
    decision = decide(job, make.snapshot(DOWN, UP, rules=waiting()))
    assert (decision.deployment, decision.defer_s) == (None, 5.0)
    for waited_s, again_s in ((60.0, 15.0), (9000.0, 120.0)):  # it is looked at less and less often
        later = decide(replace(job, waited_s=waited_s), make.snapshot(DOWN, UP, rules=waiting()))
        assert later.defer_s == again_s
    assert "waits for small" in decision.reason
    assert decide(replace(job, due_in_s=50.0), make.snapshot(DOWN, UP, rules=waiting())).deployment == "large"
    assert decide(job, make.snapshot(DOWN, UP, rules=waiting(900.0))).deployment == "large"  # else all would be late
    assert decide(replace(job, tier="other"), make.snapshot(DOWN, UP, rules=waiting())).deployment == "large"
    assert decide(replace(job, attended=True), make.snapshot(DOWN, UP, rules=waiting())).deployment == "large"
    gone = replace(DOWN, awaited=False)  # it has not served for a while: who knows whether it will
    assert decide(job, make.snapshot(gone, UP, rules=waiting())).deployment == "large"
    weak = replace(waiting(), floors={"chat": 0.8})  # and the cheaper one would not do
    assert decide(job, make.snapshot(DOWN, replace(UP, quality=0.9), rules=weak)).deployment == "large"


def test_a_job_waits_for_the_only_one_that_qualifies_rather_than_break_its_floor() -> None:
    floor = replace(waiting(), floors={"chat": 0.8})
    job = make.features(tier="bulk", due_in_s=3600.0, draw=0.5)
    good = replace(LARGE, name="good", quality=0.9, live=False, capacity=0, awaited=True)
    poor = replace(UP, name="poor", profiles=profile(throughput_tps=1000.0, quality_score=0.5))
    decision = decide(job, make.snapshot(good, poor, rules=floor))
    assert (decision.deployment, decision.defer_s) == (None, 5.0)
    assert decision.reason == "waits for good, the only one that qualifies: no replica of it is serving"
    for late in (replace(job, due_in_s=50.0), replace(job, tier="other"), replace(job, attended=True)):
        decision = decide(late, make.snapshot(good, poor, rules=floor))
        assert (decision.deployment, decision.fallback) == ("poor", True)
    gone = decide(job, make.snapshot(replace(good, awaited=False), poor, rules=floor))
    assert (gone.deployment, gone.fallback) == ("poor", True)


def test_a_job_waits_for_what_is_worth_most_of_all_while_it_is_down() -> None:
    """The learned choice among those that are up must not make it look poor."""
    rules = replace(waiting(), classifier="learned")
    dear = replace(UP, name="dear", profiles=profile(throughput_tps=1000.0, quality_score=0.9))
    cheap = replace(DOWN, name="cheap", profiles=profile(quality_score=0.85))
    weak = replace(SMALL, name="weak", profiles=profile(quality_score=0.3))
    job = make.features(tier="bulk", due_in_s=3600.0, draw=0.5, hardness=0.0)
    decision = decide(job, make.snapshot(weak, cheap, dear, rules=rules))
    assert (decision.deployment, decision.defer_s) == (None, 5.0)
    assert decision.reason.startswith("waits for cheap")
    assert decide(replace(job, tier="other"), make.snapshot(weak, cheap, dear, rules=rules)).deployment == "dear"
    poor = replace(cheap, profiles=profile(quality_score=0.4))
    assert decide(job, make.snapshot(weak, poor, dear, rules=rules)).deployment == "dear"


def test_a_floor_by_a_deployment_that_is_gone_is_named() -> None:
    rules = bound(quality_share=0.8, quality_of="lost")
    decision = decide(make.features(tier="realtime"), make.snapshot(SMALL, rules=rules))
    assert decision.notes[0] == "no floor by the quality of lost: the catalog has it no more"


def test_nobody_waits_beside_its_own_queue() -> None:
    """Where none serves, a model queue keeps the job: it starts as soon as there is an engine."""
    job = make.features(tier="bulk", due_in_s=3600.0)
    decision = decide(job, make.snapshot(DOWN, replace(UP, live=False), rules=waiting()))
    assert (decision.deployment, decision.fallback) == ("small", False)


def test_only_what_the_cheapest_cannot_do_in_time_moves_up() -> None:
    cheap = replace(SMALL, profiles=profile(throughput_tps=100.0), capacity=8)
    jobs_due = [make.features(tier="bulk", due_in_s=3600.0, draw=i / 1000) for i in range(1000)]
    for needed, moved in ((50.0, 0), (80.0, 0), (160.0, 500), (800.0, 900), (9000.0, 909)):
        decisions = decide_many(jobs_due, make.snapshot(cheap, UP, rules=waiting(needed)))
        assert sum(d.deployment == "large" for d in decisions) == pytest.approx(moved, abs=20)
    assert "the deadlines need 9,000 tokens/s" in next(d.reason for d in decisions if d.deployment == "large")


def test_what_begins_alike_stays_where_it_was_at_about_the_same_price() -> None:
    near = replace(SMALL, name="near", output_usd_per_1m=Decimal("0.41"))
    job = make.features(sticky="near")
    assert decide(job, make.snapshot(SMALL, near)).deployment == "near"
    assert "cached" in decide(job, make.snapshot(SMALL, near)).reason
    assert decide(replace(job, sticky="large"), make.snapshot(SMALL, LARGE)).deployment == "small"
    assert decide(job, make.snapshot(SMALL, replace(near, live=False))).deployment == "small"


def test_a_small_share_explores_what_is_least_known() -> None:
    rules = Rules(tiers={"bulk": TierRules()}, explore_share=0.1, explore_tiers=frozenset({"bulk"}))
    known = make.snapshot(SMALL, MEDIUM, replace(LARGE, profiles=profile()), rules=rules)
    decisions = decide_many([make.features(tier="bulk", draw=i / 1000) for i in range(1000)], known)
    explored = [d for d in decisions if d.explored]
    assert len(explored) == pytest.approx(100, abs=20)
    assert {d.deployment for d in explored} == {"medium"}
    assert not any(d.explored for d in decide_many([make.features(tier="realtime", draw=0.0)], known))
