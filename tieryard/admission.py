"""Whether a request may become a job: the catalog knows its tier, model and category, and it fits somewhere.

The same checks run where a caller waits for the answer (the API) and where lines become jobs (the expander).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from tieryard.catalog import Catalog, Policy, Price
from tieryard.errors import ModelNotFoundError, PromptTooLongError, RequestError
from tieryard.hardness import Loaded, Word, load_hardness
from tieryard.ids import draw
from tieryard.requests import EMBEDDINGS, Relative, Request, Slo, parse_batch_line
from tieryard.routing import Bounds, Decision, Hurdle, JobFeatures, Snapshot, decide, text_features, worst_usd
from tieryard.tokens import TokenCounter, load_counter

DEFAULT_TIER = "batch"
_FILE_TIER = "bulk"  # of a file's batch, where the catalog has it

_ASKED_BY = {"json_schema": "response_format", "logprobs": "logprobs", "tools": "tools"}
"""The parameter that asks for a capability."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What routing depends on beside a request: whose job it is, under which tier, until when. `sticky` is the
    deployment that has its beginning cached; the caller of what is `attended` waits on a connection."""

    tier: str = ""
    tenant: str = ""
    job_id: int = 0
    accepted: datetime | None = None
    expires: datetime | None = None
    sticky: str = ""
    attended: bool = False
    now: datetime = field(default_factory=lambda: datetime.now(tz=UTC))


class Admission:
    """Checks requests against one catalog. Loading the tokenizers takes a fraction of a second."""

    def __init__(self, catalog: Catalog, *, cache_dir: Path) -> None:
        self.catalog = catalog
        specs = {d.tokenizer for d in catalog.deployments.values()}
        self.counters: dict[str, TokenCounter] = {spec: load_counter(spec, cache_dir=cache_dir) for spec in specs}
        self._made_on, self._snapshot = _today(), Snapshot.of(catalog)
        self._model: Loaded | None = None

    @property
    def _static(self) -> Snapshot:
        """The catalog alone, with the prices of today."""
        day = _today()
        if self._made_on != day:
            self._snapshot, self._made_on = Snapshot.of(self.catalog), day
        return self._snapshot

    def check(self, request: Request, *, callbacks: bool, tenant: str = "", line: int | None = None) -> None:
        """Raises RequestError that names the field (and the line). `callbacks`: whether any can be signed. `tenant`:
        whose it is, by name, for the policy that may hold for it."""
        try:
            self.check_names(request, callbacks=callbacks)
            self._check_fit(request, tenant)
        except RequestError as error:
            error.line = line
            raise

    def tier_of(self, request: Request, default: str | None = None) -> str:
        """The request's tier, else the list's, else `batch`. Raises RequestError."""
        return self.check_tier(request.tier or default or DEFAULT_TIER)

    def file_tier(self, wanted: str | None) -> str:
        """The tier of a file's batch: the one its caller names, else `bulk`, else `batch`. Raises RequestError."""
        return self.check_tier(wanted or (_FILE_TIER if _FILE_TIER in self.catalog.tiers else DEFAULT_TIER))

    def check_tier(self, tier: str) -> str:
        """The same tier, when the catalog has it. Raises RequestError."""
        if tier not in self.catalog.tiers:
            raise RequestError(f"'{tier}' is not a tier; expected one of {_names(self.catalog.tiers)}", param="tier")
        return tier

    def check_endpoint(self, endpoint: str) -> None:
        """Raises RequestError when no deployment of the catalog serves it: all of a batch would fail."""
        served = {path for d in self.catalog.deployments.values() for path in d.endpoints}
        if endpoint not in served:
            known = _names(sorted(served))
            raise RequestError(f"no deployment serves '{endpoint}'; expected one of {known}", param="endpoint")

    def features(self, requests: list[Request], around: list[Surroundings] | None = None) -> list[JobFeatures]:
        """What routing needs to know of each, tokenised together, once for each distinct tokenizer.

        Raises RequestError when a chat template refuses one of them.
        """
        counts = {spec: count_prompts(counter, requests) for spec, counter in self.counters.items()}
        return [
            self._features(r, {spec: counts[spec][i] for spec in counts}, at)
            for i, (r, at) in enumerate(zip(requests, around or [_NOWHERE] * len(requests), strict=True))
        ]

    def load_model(self) -> Loaded:
        """Now, and not when the first job needs it."""
        if self._model is None:
            self._model = load_hardness(self.catalog)
        return self._model

    def _word(self, request: Request, text: str, category: str) -> Word:
        """Only where something is to be chosen by it."""
        if request.model in self.catalog.deployments or request.endpoint == EMBEDDINGS:
            return _NO_WORD
        hardness = self.load_model().hardness
        return hardness.of(text, category) if hardness is not None else _NO_WORD

    def _features(self, request: Request, prompt_tokens: dict[str, int], at: Surroundings) -> JobFeatures:
        text = request.text()
        seen = text_features(text, category=request.category)
        word = self._word(request, text, seen.category)
        return JobFeatures(
            text=seen,
            model=request.model,
            prompt_tokens=prompt_tokens,
            max_tokens=request.max_tokens,
            needs=request.needs,
            endpoint=request.endpoint,
            tier=at.tier,
            bounds=Bounds.of(request.slo) if request.slo is not None else None,
            max_cost_usd=request.max_cost_usd,
            policy=self._policy_of(at.tenant),
            waited_s=round((at.now - at.accepted).total_seconds(), 1) if at.accepted is not None else 0.0,
            due_in_s=self.due_in_s(request.slo, at),
            hardness=word.hardness,
            predicted=word.predicted,
            sticky=at.sticky,
            attended=at.attended,
            draw=draw(at.job_id),
        )

    def due_in_s(self, slo: Slo | None, at: Surroundings) -> float | None:
        """To the job's own deadline, its tier's, or the end of its window, whichever comes first."""
        tier = self.catalog.tiers.get(at.tier)
        wished = (slo.deadline if slo is not None else None) or (tier.slo.deadline if tier else None)
        if isinstance(wished, timedelta):
            wished = at.accepted + wished if at.accepted is not None else at.now + wished
        ends = [moment for moment in (wished, at.expires) if moment is not None]
        return round((min(ends) - at.now).total_seconds(), 1) if ends else None

    def _policy_of(self, tenant: str) -> str:
        """The tenant's name where a policy holds for it, else nothing."""
        return tenant if tenant in self.catalog.routing.policies else ""

    def sticks(self, tenant: str) -> bool:
        """Whether this tenant's jobs that begin alike stay with one deployment."""
        policy = self.catalog.routing.policies.get(tenant)
        return policy is None or policy.sticky

    def prompt_tokens(self, requests: list[Request]) -> list[int]:
        """Prompt tokens of each, by the tokenizer that makes the most of it: what limits count."""
        counts = [count_prompts(counter, requests) for counter in self.counters.values()]
        return [max(column) for column in zip(*counts, strict=True)]

    def file_tokens(self, lines: Iterable[list[str]], endpoint: str) -> int:
        """Prompt tokens of a batch file, given in parts. Lines that are no requests have none."""
        total = 0
        for part in lines:
            requests: list[Request] = []
            for line in part:
                with contextlib.suppress(RequestError):
                    requests.append(parse_batch_line(line, endpoint=endpoint))
            try:
                total += sum(self.prompt_tokens(requests))
            except RequestError:  # a chat template refuses one of them, which will fail alone
                for request in requests:
                    with contextlib.suppress(RequestError):
                        total += sum(self.prompt_tokens([request]))
        return total

    def worst_usd(self, requests: list[Request], prices: Mapping[str, Price], *, tenant: str = "") -> list[Decimal]:
        """The most that each can cost, by the dearest `prices` of each deployment: nothing, where a chat template
        refuses it, since it will fail."""
        try:
            counts = {spec: count_prompts(counter, requests) for spec, counter in self.counters.items()}
        except RequestError:
            if len(requests) == 1:
                return [Decimal(0)]
            return [usd for request in requests for usd in self.worst_usd([request], prices, tenant=tenant)]
        return [
            worst_usd(
                self._bare(request, {spec: counts[spec][i] for spec in counts}, tenant),
                self._static,
                prices,
                limited=request.endpoint == EMBEDDINGS or "max_tokens" in request.body,
            )
            for i, request in enumerate(requests)
        ]

    def check_names(self, request: Request, *, callbacks: bool) -> None:
        """Raises RequestError where it names what the catalog does not have."""
        if request.tier is not None:
            self.tier_of(request)
        if request.category is not None and request.category not in self.catalog.categories:
            raise RequestError(
                f"'{request.category}' is not a category; expected one of {_names(self.catalog.categories)}",
                param="category",
            )
        sizes = {f"class:{d.size_class}" for d in self.catalog.deployments.values()}
        if request.model not in {"auto", *sizes, *self.catalog.deployments}:
            known = ["auto", *sorted(sizes), *self.catalog.deployments]
            raise ModelNotFoundError(f"'{request.model}' is not served; expected one of {_names(known)}", param="model")
        due = request.slo.deadline if request.slo is not None else None
        if isinstance(due, datetime) and due <= datetime.now(tz=UTC):
            raise RequestError(f"{due.isoformat()} is over; give a time to come, or none", param="slo.deadline")
        floor = request.slo.min_quality if request.slo is not None else None
        if isinstance(floor, Relative) and floor.of not in self.catalog.deployments:
            raise RequestError(
                f"'{floor.of}' is not a deployment; expected one of {_names(self.catalog.deployments)}",
                param="slo.min_quality.of",
            )
        if request.callback_url is not None and not callbacks:
            raise RequestError(
                "callbacks are off: this fleet has no TIERYARD_WEBHOOK_SECRET to sign them with", param="callback_url"
            )

    def _check_fit(self, request: Request, tenant: str) -> None:
        """A byte-level bound proves most fits; only the rest is tokenised."""
        features = self._bare(
            request, {spec: _at_most(counter, request) for spec, counter in self.counters.items()}, tenant
        )
        if decide(features, self._static).deployment is not None:
            return
        exact = decide(self.features([request], [Surroundings(tenant=tenant)])[0], self._static)
        if exact.deployment is None:
            raise _misfit(request, exact, self.catalog.routing.policies.get(tenant))

    def _bare(self, request: Request, prompt_tokens: dict[str, int], tenant: str) -> JobFeatures:
        """All that decides who can take it at all."""
        return JobFeatures(
            text=_NO_TEXT,
            model=request.model,
            prompt_tokens=prompt_tokens,
            max_tokens=request.max_tokens,
            needs=request.needs,
            endpoint=request.endpoint,
            max_cost_usd=request.max_cost_usd,
            policy=self._policy_of(tenant),
        )


def _today() -> date:
    return datetime.now(tz=UTC).date()


_NO_TEXT = text_features("")


def counted_for(features: JobFeatures, snapshot: Snapshot) -> JobFeatures:
    """The same, for a snapshot of another catalog than theirs: where that has another tokenizer, the most that any of
    theirs counts stands in for its count."""
    lacking = {c.tokenizer for c in snapshot.candidates} - features.prompt_tokens.keys()
    if not lacking:
        return features
    most = max(features.prompt_tokens.values())
    return replace(features, prompt_tokens=features.prompt_tokens | dict.fromkeys(lacking, most))


_NOWHERE = Surroundings()
_NO_WORD = Word()


def _misfit(request: Request, nowhere: Decision, policy: Policy | None) -> RequestError:
    """Why it fits nowhere, by what kept it from the candidates that came closest."""
    hurdle = nowhere.closest[0].hurdle
    if hurdle is Hurdle.CONTEXT:
        return PromptTooLongError(nowhere.reason, param=request.input_field)
    if hurdle is Hurdle.CAPABILITIES:
        lacks = [refusal.lacks for refusal in nowhere.closest]
        # What all of them lack is at fault; where each lacks something else, any of it is.
        at_fault = frozenset.intersection(*lacks) or frozenset.union(*lacks)
        return RequestError(nowhere.reason, param=_ASKED_BY[min(at_fault)])
    if hurdle is Hurdle.CAP:
        return _too_dear(request, nowhere, policy)
    # Its tenant may not use what it asks for, or its model's deployments do not serve this endpoint.
    return RequestError(nowhere.reason, param="model")


def _too_dear(request: Request, nowhere: Decision, policy: Policy | None) -> RequestError:
    """Above the job's own cap, or its tenant's, which the job can only meet by asking for less."""
    own, tenants = request.max_cost_usd, policy.max_cost_usd if policy is not None else None
    if own is not None and (tenants is None or own <= tenants):
        return RequestError(nowhere.reason, param="max_cost_usd")
    param = "max_tokens" if request.max_tokens else request.input_field
    return RequestError(f"{nowhere.reason}, its tenant's cap for one job", param=param)


def count_prompts(counter: TokenCounter, requests: list[Request]) -> list[int]:
    """Prompt tokens of each: what goes through the chat template, and what is sent as it is."""
    chats = iter(counter.count([r.conversation for r in requests if r.conversation is not None]))
    raws = iter(counter.count_raw([text for r in requests for text in r.raw]))
    return [(next(chats) if r.conversation is not None else 0) + sum(next(raws) for _ in r.raw) for r in requests]


def _at_most(counter: TokenCounter, request: Request) -> int:
    chat = 0 if request.conversation is None else counter.at_most(request.conversation)
    return chat + sum(len(text.encode()) + 1 for text in request.raw)


def _names(known: object) -> str:
    return ", ".join(f"'{name}'" for name in known)  # type: ignore[attr-defined]
