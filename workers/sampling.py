"""The requests that speed is measured with, by category: of tenants who have agreed, then of the catalog, then built-in
ones. What a tenant wrote is redacted before anything else is done with it."""

from __future__ import annotations

import importlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import tieryard.bench
from tieryard.admission import count_prompts
from tieryard.bench.load import Sampled
from tieryard.catalog import Catalog, Deployment, SampleItem
from tieryard.catalog.benchmarks import Redaction
from tieryard.errors import RequestError, UserError
from tieryard.requests import EMBEDDINGS, JobCreate, Request, parse_request
from tieryard.store.samples import recent_requests
from tieryard.telemetry import fault
from tieryard.tokens import TokenCounter, load_counter
from workers.yard import Yard

_BUILT_IN = Path(tieryard.bench.__file__).with_name("sample.yaml")
_NOT_TEXT = frozenset({"role", "type"})
"""Members whose values are the protocol's words, and nobody's."""
_WORD = re.compile("[a-z_]+")

Redactor = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Sample:
    """`requests` in the order in which they are sent, one category after the other. `origins`: by category, how many
    distinct ones came from where. `most_tokens` is what the longest may use, prompt and answer."""

    requests: list[Sampled]
    origins: dict[str, dict[str, int]]
    most_tokens: int
    notes: list[str]


@dataclass(slots=True)
class _Drawing:
    """A sample in the making: by category, (request, prompt tokens, where it is from)."""

    each: int
    found: dict[str, list[tuple[Request, int, str]]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)

    def lacks(self, category: str) -> int:
        return max(0, self.each - len(self.found[category]))


def draw_sample(
    yard: Yard, catalog: Catalog, name: str, *, categories: Sequence[str], count: int, seed: int, apart: dict[str, Any]
) -> Sample:
    """`count` requests for a deployment, as many of each category as of any other. `apart` are members that keep this
    run's from what an engine has cached of others. Raises UserError where nothing fits, or no redactor is there."""
    drawing = _Drawing(min(catalog.benchmarks.sample.per_category, count))
    fits = _Fit(catalog.deployments[name], load_counter(catalog.deployments[name].tokenizer, cache_dir=_cache(yard)))
    for source, found in (
        ("tenants", _of_tenants(yard, catalog, name, categories, drawing)),
        ("catalog", _of_items(catalog.benchmarks.sample.items, categories)),
        ("built_in", _of_items(_built_in(), categories)),
    ):
        for category, requests in found:
            if drawing.lacks(category):
                taken = fits.of(requests)[: drawing.lacks(category)]
                drawing.found[category] += [(request, tokens, source) for request, tokens in taken]
    return _arranged(drawing, categories, count=count, seed=seed, apart=apart, name=name)


def _arranged(
    drawing: _Drawing, categories: Sequence[str], *, count: int, seed: int, apart: dict[str, Any], name: str
) -> Sample:
    pools = {category: drawing.found[category] for category in categories if drawing.found[category]}
    notes = drawing.notes + [
        f"no request of {category} fits {name}" for category in categories if category not in pools
    ]
    if not pools:
        raise UserError("; ".join(notes))
    kinds = list(pools)
    dice = random.Random(seed)  # noqa: S311  # nothing secret
    for category in kinds:  # those from the best source, and the newest, in any order
        pools[category] = pools[category][: -(-count // len(kinds))]
        dice.shuffle(pools[category])
    places = [(kinds[i % len(kinds)], i // len(kinds)) for i in range(count)]
    asked = Counter(category for category, _ in places)
    if few := [
        f"{category} {len(pools[category])} for {n}" for category, n in asked.items() if n > len(pools[category])
    ]:
        helped = "" if apart.get("cache_prompt") is False else ", so a prefix cache may have helped"
        notes.append(f"fewer prompts than requests{helped}: {', '.join(few)}")
    requests = [Sampled(_body(pools[c][turn % len(pools[c])][0], apart), c) for c, turn in places]
    used = {category: pools[category][: asked[category]] for category in asked}
    most = max(tokens + request.max_tokens for pool in used.values() for request, tokens, _ in pool)
    return Sample(
        requests, {c: dict(Counter(origin for _, _, origin in pool)) for c, pool in used.items()}, most, notes
    )


def _body(request: Request, apart: dict[str, Any]) -> dict[str, Any]:
    """Without a limit an answer might go on for the whole context."""
    return request.body | {"max_tokens": request.max_tokens} | apart


def _cache(yard: Yard) -> Path:
    return yard.settings.cache_dir


# --- where they come from ---------------------------------------------------------------------------------------------


def _of_tenants(
    yard: Yard, catalog: Catalog, name: str, categories: Sequence[str], drawing: _Drawing
) -> Iterator[tuple[str, list[Request]]]:
    """By category, newest first. A tenant whose policy keeps its jobs from this deployment keeps its requests too."""
    tenants = [tenant for tenant in catalog.benchmarks.sample.tenants if _may_go(catalog, tenant, name)]
    if not tenants:
        return
    redact = redaction(catalog.benchmarks.sample.redact, load_redactor(yard.settings.redactor))
    passed = [other for other, spec in catalog.deployments.items() if spec.serves == "embeddings"]
    lines = recent_requests(yard.store, tenants=tenants, categories=categories, passed=passed, each=2 * drawing.each)
    found: dict[str, list[Request]] = defaultdict(list)
    unredacted = Counter[str]()
    for category, line in lines:
        try:
            request = parse_request(line)
            if request.endpoint != EMBEDDINGS:
                found[category].append(replace(request, body=redacted(request.body, redact)))
        except RequestError:  # today's rules refuse what was accepted once
            continue
        except Exception as error:  # the redactor is not ours, and without it nothing of a tenant's is used
            unredacted[fault(error)["error"]] += 1
    drawing.notes += [f"{n} requests were left out: the redactor failed ({kind})" for kind, n in unredacted.items()]
    yield from found.items()


def _may_go(catalog: Catalog, tenant: str, name: str) -> bool:
    policy = catalog.routing.policies.get(tenant)
    return policy is None or policy.allows(name, catalog.deployments[name].region)


def _of_items(items: Sequence[SampleItem], categories: Sequence[str]) -> Iterator[tuple[str, list[Request]]]:
    for category in categories:
        if own := [item for item in items if item.category == category]:
            yield category, [JobCreate(prompt=item.prompt, max_tokens=item.max_tokens).request() for item in own]


@cache
def _built_in() -> tuple[SampleItem, ...]:
    found: dict[str, list[dict[str, Any]]] = YAML(typ="safe", pure=True).load(_BUILT_IN.read_text(encoding="utf-8"))
    return tuple(SampleItem(category=category, **item) for category, items in found.items() for item in items)


# --- what is taken out of them ----------------------------------------------------------------------------------------


def load_redactor(named: str | None) -> Redactor | None:
    """`module:function`, from text to text. Raises UserError: without it nothing of a tenant's may be used."""
    if named is None:
        return None
    module, _, function = named.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing it runs code that is not ours
        raise UserError(f"TIERYARD_REDACTOR: '{named}' cannot be loaded ({type(error).__name__})") from None
    if not callable(found):
        raise UserError(f"TIERYARD_REDACTOR: '{named}' is no function")
    redactor: Redactor = found
    return redactor


def redaction(patterns: Sequence[Redaction], redactor: Redactor | None) -> Redactor:
    """All of them, in their order, then the redactor."""
    compiled = [(re.compile(one.pattern), one.put) for one in patterns]

    def redact(text: str) -> str:
        for pattern, put in compiled:
            text = pattern.sub(lambda _, put=put: put, text)  # type: ignore[misc]  # `put` is text, and no template
        if redactor is not None and not isinstance(text := redactor(text), str):
            raise TypeError
        return text

    return redact


def redacted(value: Any, redact: Redactor) -> Any:
    """The same JSON value, every text in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [redacted(item, redact) for item in value]
    if isinstance(value, dict):
        return {name: item if _is_word(name, item) else redacted(item, redact) for name, item in value.items()}
    return value


def _is_word(name: str, value: Any) -> bool:
    """Of the protocol: in a tenant's own JSON a member of such a name may hold anything."""
    return name in _NOT_TEXT and isinstance(value, str) and _WORD.fullmatch(value) is not None


# --- what fits --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fit:
    """Whether a deployment can take a request."""

    spec: Deployment
    counter: TokenCounter

    def of(self, requests: Sequence[Request]) -> list[tuple[Request, int]]:
        """Those that it can, with their prompt tokens."""
        able = [request for request in requests if request.needs <= self.spec.capabilities]
        counted = [(request, self._tokens(request)) for request in able]
        limit = self.spec.context_limit
        return [(r, n) for r, n in counted if n is not None and n + r.max_tokens <= limit]

    def _tokens(self, request: Request) -> int | None:
        """None where the chat template refuses it."""
        try:
            return count_prompts(self.counter, [request])[0]
        except RequestError:
            return None
