"""Decisions: never beyond what a deployment can take, nearest size first, then cheapest; and always explained."""

from __future__ import annotations

from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import factories as make
from tieryard.catalog import SizeClass
from tieryard.routing import Candidate, JobFeatures, Profile, Snapshot, TextFeatures, decide, decide_many
from tieryard.routing.decide import Hurdle, expected_cost

SIZES = st.sampled_from(SizeClass)
CAPABILITIES = st.frozensets(st.sampled_from(["json_schema", "tools", "logprobs"]))
usd = st.decimals(min_value=0, max_value=100, places=6)
NAMES = ["a", "b", "c", "d", "e"]


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
        backlog=draw(st.integers(min_value=0, max_value=9)),
        profiles=draw(st.dictionaries(st.sampled_from(["chat", "code"]), st.builds(
            Profile, st.integers(0, 9), st.floats(0, 2e9), ttft_ms=st.none() | st.floats(0, 1e4)))),
    )  # fmt: skip


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5))
    return make.snapshot(*[draw(candidates(name)) for name in names])


jobs = st.builds(
    JobFeatures,
    text=st.builds(TextFeatures, st.just("chat"), SIZES, st.text(max_size=9), st.integers(0, 99), st.booleans()),
    model=st.sampled_from(["auto", "auto", "class:small", "class:large", *NAMES]),
    prompt_tokens=st.fixed_dictionaries({"t": st.integers(0, 2000), "u": st.integers(0, 2000)}),
    max_tokens=st.integers(1, 2000),
    needs=CAPABILITIES,
)


def can_take(job: JobFeatures, c: Candidate) -> bool:
    """The filters, said once more and differently."""
    asked = job.model in ("auto", c.name, f"class:{c.size_class}")
    return asked and job.needs <= c.capabilities and c.context_limit >= job.max_tokens + job.prompt_tokens[c.tokenizer]


@given(jobs, snapshots())
def test_the_chosen_can_take_the_job_and_none_is_chosen_only_when_none_can(job: JobFeatures, known: Snapshot) -> None:
    able = {c.name for c in known.candidates if can_take(job, c)}
    decision = decide(job, known)
    assert (decision.deployment in able) if able else (decision.deployment is None)
    assert decision.reason
    assert {j.name for j in decision.judged if j.qualifies} == able


@given(jobs, snapshots())
def test_every_loser_is_told_why_and_the_winner_is_not(job: JobFeatures, known: Snapshot) -> None:
    decision = decide(job, known)
    assert [j.name for j in decision.judged] == [c.name for c in known.candidates]
    for judged in decision.judged:
        assert bool(judged.why) == (judged.name != decision.deployment)


@given(jobs, snapshots())
def test_nothing_that_serves_and_is_of_that_size_would_have_been_cheaper(job: JobFeatures, known: Snapshot) -> None:
    decision = decide(job, known)
    by_name = {c.name: c for c in known.candidates}
    if decision.deployment is None:
        return
    chosen = by_name[decision.deployment]
    rivals = [
        c for c in known.candidates if can_take(job, c) and c.live == chosen.live and c.size_class == chosen.size_class
    ]
    assert expected_cost(job, chosen) == min(expected_cost(job, c) for c in rivals)
    assert chosen.live or not any(c.live for c in known.candidates if can_take(job, c))


@given(jobs, snapshots())
def test_a_stored_decision_can_be_made_again(job: JobFeatures, known: Snapshot) -> None:
    kept = orjson.loads(orjson.dumps(job, default=sorted))  # as save_decisions stores it
    assert JobFeatures.from_dict(kept) == job
    body = known.to_json()
    again = Snapshot.from_json(orjson.loads(body))
    assert again == known
    assert again.to_json() == body
    assert decide(JobFeatures.from_dict(kept), again) == decide(job, known)


@given(jobs, snapshots())
def test_features_as_the_store_writes_them_can_be_read(job: JobFeatures, known: Snapshot) -> None:
    stored = orjson.loads(orjson.dumps(job, default=sorted))
    assert JobFeatures.from_dict(stored) == job


@given(st.lists(jobs, max_size=5), snapshots())
def test_many_are_decided_one_by_one_in_order(several: list[JobFeatures], known: Snapshot) -> None:
    assert decide_many(several, known) == [decide(job, known) for job in several]


SMALL = make.candidate("small", size_class=SizeClass.SMALL)
MEDIUM = make.candidate("medium", size_class=SizeClass.MEDIUM, input_usd_per_1m=Decimal(1))
LARGE = make.candidate("large", size_class=SizeClass.LARGE, input_usd_per_1m=Decimal(9))


@pytest.mark.parametrize(
    ("wanted", "there", "chosen", "fallback"),
    [
        ("small", [LARGE, MEDIUM, SMALL], "small", False),
        ("small", [LARGE, MEDIUM], "medium", False),
        ("medium", [LARGE, SMALL], "large", False),
        ("medium", [SMALL], "small", True),
        ("large", [SMALL, MEDIUM], "medium", True),
    ],
)
def test_the_nearest_size_is_taken_a_larger_before_a_smaller(
    wanted: str, there: list[Candidate], chosen: str, fallback: bool
) -> None:
    decision = decide(make.features(wanted=wanted), make.snapshot(*there))
    assert (decision.deployment, decision.fallback) == (chosen, fallback)


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
