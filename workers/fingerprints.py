"""What answers under a deployment's name, as far as servers tell; and whether that, or its quality, has changed unseen.

A catalog pins a model, and still the answers may come from something else: a provider swaps a model behind its name, a
server is started again with another version or chat template. So each run keeps a fingerprint, and is held against the
last one of the same build.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from tieryard.bench.gate import CategoryVerdict
from tieryard.catalog import Deployment, LoraEngine, VllmEngine, served_model
from tieryard.engines.openai_http import OpenAIHttpEngine
from tieryard.engines.opening import open_replica
from tieryard.engines.vetting import DATE
from tieryard.errors import EngineError, UserError
from tieryard.promotions import paired, verdict_of, worse_in
from tieryard.store import Connection, profiles, trials
from tieryard.store.benchmarks import BenchmarkRun, RunEnd, RunKind
from tieryard.tokens import template_of
from workers.yard import Yard

_MOST_ASKED = 8  # replicas
_ANSWER_S, _ALL_S = 3.0, 20.0
_CONVERSATION = [{"role": "user", "content": "Say hello."}]
_HELD = (
    "model", "root", "max_model_len", "version", "chat_template", "catalog_template", "system_fingerprint",
)  # fmt: skip
"""Of a fingerprint, what must stay while the build does."""

_KINDS = [RunKind.SPEED, RunKind.CAPACITY, RunKind.QUALITY]

Seen = dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a run has found to be otherwise than before: parts of the fingerprint, and by category why answers are
    worse. Empty where nothing is."""

    drifted: str = ""
    worse: dict[str, str] = field(default_factory=dict)

    @property
    def regressed(self) -> str | None:
        return "; ".join(said for said in (self.drifted, *self.worse.values()) if said) or None

    def stored(self) -> dict[str, Any]:
        """What of a run's report tells of it."""
        return {"changes": asdict(self)} if self.regressed else {}


def fingerprint(yard: Yard, deployment: str) -> dict[str, Any] | None:
    """Of what answers now; None where the catalog has no such deployment. What a server does not tell is None; where
    replicas differ it is a list, and `differing` says so. Bounded in time."""
    catalog = yard.catalog
    known = catalog.deployments.get(deployment)
    if known is None:
        return None
    urls = list(dict.fromkeys(r.url for r in yard.metrics.replicas(deployment) if r.serves and r.url))
    replicas = asyncio.run(_ask_all(yard, deployment, urls[:_MOST_ASKED]))
    merged = {name: _merged(seen.get(name) for seen in replicas) for name in _HELD}
    host = catalog.deployments[catalog.host_of(deployment)].engine
    with yard.store.transaction() as connection:
        said = trials.fingerprints(connection, deployment)
    own = {
        "revision": known.pinned,
        "build": known.build,
        "flags": host.flags if isinstance(host, VllmEngine) else None,
        "catalog_template": _catalog_template(yard, known),
        "system_fingerprint": _merged(iter(said)),
        "replicas": len(urls),
    }
    return merged | own | {"differing": [name for name, value in merged.items() if isinstance(value, list)]}


def changes(yard: Yard, run: BenchmarkRun, end: RunEnd) -> Changes:
    """What answers otherwise than at the last run of this build, or worse."""
    worse = {one.category: _worse_said(one) for one in _worse(yard, run, end)}
    return Changes("; ".join(_drift(yard, run, end)), worse)


def demote(connection: Connection, run: BenchmarkRun, found: Changes) -> list[str]:
    """A candidate is not promoted any more where it has become worse: the categories in which it was."""
    if not found.worse:
        return []
    why = f"{run.public_id}: {'; '.join(found.worse.values())}"
    return trials.demote(connection, run.deployment, why, categories=found.worse)


def mark(yard: Yard, run: BenchmarkRun, end: RunEnd, found: Changes) -> None:
    """The profiles say what is wrong with them, or no longer do. Raises redis.RedisError."""
    rated = end.profiles if run.kind == RunKind.QUALITY else ()
    _mark(yard, run.deployment, found, seen=end.fingerprint is not None, rated=rated)


def tell_marks(yard: Yard, connection: Connection) -> None:
    """When Redis has lost its memory: what the newest runs had found comes back. Raises redis.RedisError."""
    builds = {name: known.build for name, known in yard.catalog.deployments.items()}
    for one in profiles.newest_changes(connection, builds):
        _mark(yard, one.deployment, Changes(**one.changes), seen=one.seen, rated=one.rated)


def _mark(yard: Yard, deployment: str, found: Changes, *, seen: bool, rated: Collection[str]) -> None:
    """`seen`: it had a fingerprint; `rated`: the categories in which its answers had a score."""
    for category in yard.catalog.categories if seen else ():
        yard.metrics.mark(deployment, category, "drifted", found.drifted)
    for category in {*rated, *found.worse}:
        yard.metrics.mark(deployment, category, "regressed", found.worse.get(category, ""))


# --- what answers ---------------------------------------------------------------------------------------------


async def _ask_all(yard: Yard, deployment: str, urls: list[str]) -> list[Seen]:
    key = yard.settings.engine_key
    secret = key.get_secret_value() if key is not None else None
    engines = [open_replica(yard.catalog, deployment, url, key=secret) for url in urls]
    try:
        async with asyncio.timeout(_ALL_S):
            known = yard.catalog.deployments[deployment]
            name = deployment if isinstance(known.engine, LoraEngine) else served_model(known)
            return await asyncio.gather(*(_ask(e, name) for e in engines if isinstance(e, OpenAIHttpEngine)))
    except TimeoutError:
        return []
    finally:
        for engine in engines:
            await engine.close()


async def _ask(server: OpenAIHttpEngine, name: str) -> Seen:
    """One replica: questions that a server does not know, it refuses. Hosted APIs are asked for their models alone."""
    listed = (await _answer(server, "/v1/models")).get("data")
    cards = [card for card in listed if isinstance(card, dict)] if isinstance(listed, list) else []
    own = [card for card in cards if card.get("id") == name] or (cards if len(cards) == 1 else [])
    card = own[0] if own else {}
    seen: Seen = {field: _text(card.get(key)) for field, key in (("model", "id"), ("root", "root"))}
    seen["max_model_len"] = _text(card.get("max_model_len"))
    if server.server == "vllm":
        seen["version"] = _text((await _answer(server, "/version")).get("version"))
        seen["chat_template"] = await _rendered(server, name)
    elif server.server == "llama_cpp":
        props = await _answer(server, "/props")
        seen["version"] = _text(props.get("build_info"))
        template = props.get("chat_template")
        seen["chat_template"] = _digest(template) if isinstance(template, str) else None
    return seen


async def _rendered(server: OpenAIHttpEngine, name: str) -> str | None:
    """A digest of how the server writes a short conversation: its chat template, which it does not show. Without dates,
    which some templates write."""
    asked = {"model": name, "messages": _CONVERSATION, "add_generation_prompt": True}
    tokens = (await _answer(server, "/tokenize", asked)).get("tokens")
    if not isinstance(tokens, list):
        return None
    text = (await _answer(server, "/detokenize", {"model": name, "tokens": tokens})).get("prompt")
    return _digest(DATE.sub("", text)) if isinstance(text, str) else None


async def _answer(server: OpenAIHttpEngine, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Nothing where it does not answer, or refuses."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            status, answer = await server.ask(path, body)
    except (EngineError, TimeoutError):
        return {}
    return answer if status == 200 else {}


def _catalog_template(yard: Yard, deployment: Deployment) -> str | None:
    """Of the file that prompts are counted by: it may be changed in its place."""
    try:
        text = template_of(deployment.tokenizer, cache_dir=yard.settings.cache_dir)
    except (UserError, OSError, ValueError):
        return None
    return None if text is None else _digest(text)


def _merged(values: Iterator[str | None]) -> str | list[str] | None:
    found = sorted({value for value in values if value is not None})
    return found if len(found) > 1 else next(iter(found), None)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)[:200]


# --- what has changed -------------------------------------------------------------------------------------------


def _drift(yard: Yard, run: BenchmarkRun, end: RunEnd) -> list[str]:
    """Which parts of the fingerprint are other ones than at the last run; what either did not tell is none."""
    if end.fingerprint is None or end.pinned is None:
        return []
    with yard.store.transaction() as connection:
        earlier = trials.last_runs(connection, run.deployment, end.pinned, kinds=_KINDS, before=run.id)
    last = max((found for found in earlier if found[3] is not None), key=lambda found: found[0], default=None)
    before: dict[str, Any] = last[3] or {} if last is not None else {}
    return [
        f"{name} was {_said(before[name])} and is {_said(end.fingerprint[name])}"
        for name in _HELD
        if before.get(name) is not None
        and end.fingerprint.get(name) is not None
        and _values(end.fingerprint[name]) - _values(before[name])
    ]


def _worse(yard: Yard, run: BenchmarkRun, end: RunEnd) -> list[CategoryVerdict]:
    """Categories in which the gate would say so of this run beside the last one that had not regressed, on the same
    golden set."""
    if run.kind != RunKind.QUALITY or end.pinned is None:
        return []
    with yard.store.transaction() as connection:
        earlier = trials.last_runs(
            connection, run.deployment, end.pinned, kinds=[RunKind.QUALITY], before=run.id, sound=True
        )
    last = next((run_id for run_id, _, set_id, _ in earlier if set_id == run.golden_set_id), None)
    if last is None:
        return []
    try:
        pairs, _ = paired(yard.store, last, run.id)
        gate = yard.catalog.benchmarks.gate.model_copy(update={"floors": {}})  # what has changed is asked, no more
        return worse_in(verdict_of(pairs, gate)) if pairs else []
    except UserError:  # too many items have no score, or there are too few: that is no verdict
        return []


def _worse_said(one: CategoryVerdict) -> str:
    return f"worse than at its last run: {one.sentence}"


def _values(value: str | list[str]) -> set[str]:
    return set(value) if isinstance(value, list) else {value}


def _said(value: str | list[str]) -> str:
    return " or ".join(sorted(_values(value)))
