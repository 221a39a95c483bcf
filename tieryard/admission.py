"""Whether a request may become a job: the catalog knows its tier, model and category, and it fits somewhere.

The same checks run where a caller waits for the answer (the API) and where lines become jobs (the expander).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from tieryard.catalog import Catalog
from tieryard.errors import ModelNotFoundError, PromptTooLongError, RequestError
from tieryard.requests import Request, parse_batch_line
from tieryard.routing import JobFeatures, Snapshot, decide, text_features
from tieryard.routing.decide import Decision, Hurdle
from tieryard.tokens import TokenCounter, load_counter

DEFAULT_TIER = "batch"
_FILE_TIER = "bulk"  # of a file's batch, where the catalog has it

_ASKED_BY = {"json_schema": "response_format", "logprobs": "logprobs", "tools": "tools"}
"""The parameter that asks for a capability."""


class Admission:
    """Checks requests against one catalog. Loading the tokenizers takes a fraction of a second."""

    def __init__(self, catalog: Catalog, *, cache_dir: Path) -> None:
        self.catalog = catalog
        specs = {d.tokenizer for d in catalog.deployments.values()}
        self.counters: dict[str, TokenCounter] = {spec: load_counter(spec, cache_dir=cache_dir) for spec in specs}
        self._static = Snapshot.of(catalog)

    def check(self, request: Request, *, callbacks: bool, line: int | None = None) -> None:
        """Raises RequestError that names the field (and the line). `callbacks`: whether any can be signed."""
        try:
            self._check_names(request, callbacks=callbacks)
            self._check_fit(request)
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

    def features(self, requests: list[Request]) -> list[JobFeatures]:
        """What routing needs to know of each, tokenised together, once for each distinct tokenizer.

        Raises RequestError when a chat template refuses one of them.
        """
        counts = {spec: _count(counter, requests) for spec, counter in self.counters.items()}
        return [
            JobFeatures(
                text=text_features(r.text(), category=r.category),
                model=r.model,
                prompt_tokens={spec: counts[spec][i] for spec in counts},
                max_tokens=r.max_tokens,
                needs=r.needs,
                endpoint=r.endpoint,
            )
            for i, r in enumerate(requests)
        ]

    def prompt_tokens(self, requests: list[Request]) -> list[int]:
        """Prompt tokens of each, by the tokenizer that makes the most of it: what limits count."""
        counts = [_count(counter, requests) for counter in self.counters.values()]
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

    def _check_names(self, request: Request, *, callbacks: bool) -> None:
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
        if request.callback_url is not None and not callbacks:
            raise RequestError(
                "callbacks are off: this fleet has no TIERYARD_WEBHOOK_SECRET to sign them with", param="callback_url"
            )

    def _check_fit(self, request: Request) -> None:
        """A byte-level bound proves most fits; only the rest is tokenised."""
        features = JobFeatures(
            text=_NO_TEXT,
            model=request.model,
            prompt_tokens={spec: _at_most(counter, request) for spec, counter in self.counters.items()},
            max_tokens=request.max_tokens,
            needs=request.needs,
            endpoint=request.endpoint,
        )
        if decide(features, self._static).deployment is not None:
            return
        exact = decide(self.features([request])[0], self._static)
        if exact.deployment is None:
            raise _misfit(request, exact)


_NO_TEXT = text_features("")


def _misfit(request: Request, nowhere: Decision) -> RequestError:
    """Why it fits nowhere, by what kept it from the candidates that came closest."""
    hurdle = nowhere.closest[0].hurdle
    if hurdle is Hurdle.CONTEXT:
        return PromptTooLongError(nowhere.reason, param=request.input_field)
    if hurdle is Hurdle.CAPABILITIES:
        lacks = [refusal.lacks for refusal in nowhere.closest]
        # What all of them lack is at fault; where each lacks something else, any of it is.
        at_fault = frozenset.intersection(*lacks) or frozenset.union(*lacks)
        return RequestError(nowhere.reason, param=_ASKED_BY[min(at_fault)])
    return RequestError(nowhere.reason, param="model")  # whose deployments do not serve this endpoint


def _count(counter: TokenCounter, requests: list[Request]) -> list[int]:
    """Prompt tokens of each: what goes through the chat template, and what is sent as it is."""
    chats = iter(counter.count([r.conversation for r in requests if r.conversation is not None]))
    raws = iter(counter.count_raw([text for r in requests for text in r.raw]))
    return [(next(chats) if r.conversation is not None else 0) + sum(next(raws) for _ in r.raw) for r in requests]


def _at_most(counter: TokenCounter, request: Request) -> int:
    chat = 0 if request.conversation is None else counter.at_most(request.conversation)
    return chat + sum(len(text.encode()) + 1 for text in request.raw)


def _names(known: object) -> str:
    return ", ".join(f"'{name}'" for name in known)  # type: ignore[attr-defined]
