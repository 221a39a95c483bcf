"""A share of what users were answered is scored by the judge, once a minute, and moves the live quality as their own
scores do. Only answers to tenants that have agreed are read (`benchmarks.sample.tenants`).

What was asked stands in `live_verdict`, written with the questions: so nothing is asked twice, whoever looks.
"""

from __future__ import annotations

from typing import Any

import redis

from tieryard.catalog import Catalog, Judge
from tieryard.errors import ConflictError, NotFoundError, UserError
from tieryard.golden.judge import Question, VerdictError, judge_prompt, read_verdict
from tieryard.outcomes import score_job, tell_quality
from tieryard.requests import CHAT, COMPLETIONS, Request, parse_request
from tieryard.store import live_verdicts
from tieryard.store.leader import lead
from tieryard.store.live_verdicts import LiveAnswer, Reply
from tieryard.telemetry import Event
from workers.questions import ask, hurry, self_judged
from workers.sampling import Redactor, load_redactor, redaction
from workers.yard import Yard

_MOST_AT_ONCE = 32  # questions that are open
_PASSED_OVER = 4  # so many are looked at for each: not all can be judged
_WITHIN_S = 300.0  # what is older was missed: this is a sample
_CRITERIA = "The answer does what was asked, correctly and completely."
_AS_JSON = " It had to be JSON, as the program that reads it asked for."


def look(yard: Yard) -> None:
    """Reads the verdicts that have come, and asks for more. One process at a time. Raises StoreError."""
    with lead(yard.store, "judging") as connection:
        if connection is None:
            return
        replies = live_verdicts.replies(yard.store)
        whys = [_settled(yard, reply) for reply in replies]
        if replies:
            live_verdicts.settle(yard.store, zip((reply.job_id for reply in replies), whys, strict=True))
        try:
            asked = _ask(yard)
        except UserError as error:  # a redactor that cannot be loaded: nothing is read without it
            yard.log.error(Event.TASK_FAILED, task="judging", error=str(error))
            asked = 0
        if replies or asked:
            scored = whys.count(None)
            yard.log.info(Event.ANSWERS_JUDGED, scored=scored, without_verdict=len(whys) - scored, asked=asked)


def _settled(yard: Yard, reply: Reply) -> str | None:
    """Makes the verdict an outcome; why there is none."""
    if reply.output is None:
        return f"{reply.state}: {reply.error or 'no text'}"
    try:
        verdict = read_verdict(reply.output)
        source = f"judge:{reply.judge}"
        told = score_job(yard.store, reply.job_id, verdict.score, source=source, tenant_id=reply.tenant_id)
    except (VerdictError, NotFoundError, ConflictError) as error:
        return error.message
    try:
        tell_quality(yard.metrics, told, verdict.score)
    except redis.RedisError as error:  # what is kept is told again when Redis has lost its memory
        yard.log.warning(Event.BROKER_AWAY, error=str(error)[:200])
    return None


def _ask(yard: Yard) -> int:
    """How many answers the judge is asked about now."""
    catalog = yard.catalog
    judge = catalog.benchmarks.judge
    if judge is None or judge.live_share == 0 or not (tenants := _agreed(catalog, judge)):
        return 0
    passed = [name for name in catalog.deployments if self_judged(catalog, judge.deployment, name)]
    constrained = "json_schema" in catalog.deployments[judge.deployment].capabilities
    redact = redaction(catalog.benchmarks.sample.redact, load_redactor(yard.settings.redactor))
    with yard.store.transaction() as connection:
        room = _MOST_AT_ONCE - live_verdicts.waiting(connection)
        if room <= 0:
            return 0
        found = live_verdicts.choose(
            connection,
            tenants=tenants,
            passed=passed,
            share=judge.live_share,
            within_s=_WITHIN_S,
            most=_PASSED_OVER * room,
        )
        readable = ((answer.job_id, _body(answer, redact, constrained=constrained)) for answer in found)
        bodies = [(job_id, body) for job_id, body in readable if body is not None][:room]
        if not bodies:
            return 0
        batch_id = ask(connection, yard, judge.deployment, [body for _, body in bodies])
        asked = [(job_id, batch_id + line) for line, (job_id, _) in enumerate(bodies, start=1)]
        live_verdicts.save(connection, judge.deployment, asked)
    hurry(yard)
    return len(asked)


def _agreed(catalog: Catalog, judge: Judge) -> list[str]:
    """The tenants whose answers may be judged, and whose policy lets the judge's deployment read them."""
    policies, region = catalog.routing.policies, catalog.deployments[judge.deployment].region
    return [
        name
        for name in catalog.benchmarks.sample.tenants
        if (policy := policies.get(name)) is None or policy.allows(judge.deployment, region)
    ]


def _body(answer: LiveAnswer, redact: Redactor, *, constrained: bool) -> dict[str, Any] | None:
    """The question about it; None where it was no question in words, or cannot be read any more."""
    try:
        request = parse_request(answer.body)
        turns = _turns(request)
        if turns is None:
            return None
        plain = [{"role": turn["role"], "content": redact(turn["content"])} for turn in turns]
        output = redact(answer.output)
    except Exception:  # the redactor is not ours, and without it nothing of a tenant's is shown to anybody
        return None
    criteria = _CRITERIA + (_AS_JSON if "response_format" in request.body else "")
    return judge_prompt(Question(plain, criteria), output, constrained=constrained)


def _turns(request: Request) -> list[dict[str, Any]] | None:
    """What was said, where it was all said in words."""
    if request.endpoint == COMPLETIONS:
        return [{"role": "user", "content": request.body["prompt"]}]
    if request.endpoint != CHAT or "tools" in request.body:
        return None
    turns: list[dict[str, Any]] = request.body["messages"]
    return turns if all(isinstance(turn["content"], str) for turn in turns) else None
