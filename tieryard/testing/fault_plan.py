"""What a fake server is told to do: how fast, how much at once, what to answer, and which requests go wrong.

A fault is chosen by the plan (by request number, from 1, or by a callable) or by a marker in the prompt:
`[[fault:http_503]]`, or with its number, `[[fault:stall:0.5]]`. The marker wins.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Each fault, and what its number means when it takes one.
FAULTS = {
    "http_4xx, http_5xx": "that status with vLLM's error body; the number is Retry-After in seconds",
    "reset": "the connection is reset before the first byte",
    "reset_midstream": "reset after so many events of content (2)",
    "ends_early": "a clean end of the body, without [DONE], after so many events (2)",
    "stall": "no byte for so many seconds (3600) after the second event, then the rest",
    "error_event": "an error event after two events of content; the number is its status (500)",
    "broken_event": "half a JSON object in place of the third event",
    "odd_event": "valid JSON that is no object, in place of the third event",
    "no_usage": "content and a finish reason, but no usage anywhere",
    "late_end": "the body ends so many seconds (0.02) after [DONE]",
    "slow": "everything takes so many times (10) as long as planned",
    "slow_role": "the role-only chunk and `: ping` comments at once, content at its time",
    "empty": "a finish reason and one token of usage, no content",
    "line_separators": "content holds U+2028, U+2029 and U+0085, unescaped as vLLM writes them",
}
_NAMES = frozenset(FAULTS) - {"http_4xx, http_5xx"}
_MARKER = re.compile(r"\[\[fault:(\w+)(?::(\d+(?:\.\d+)?))?\]\]")


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to go wrong, by a name in `FAULTS`. `number` is what that entry says."""

    name: str
    number: float | None = None

    def __post_init__(self) -> None:
        if self.name not in _NAMES and not re.fullmatch(r"http_[45]\d\d", self.name):
            raise ValueError(f"no fault '{self.name}'; there are {', '.join(FAULTS)}")

    @property
    def status(self) -> int | None:
        return int(self.name[5:]) if self.name.startswith("http_") else None

    def amount(self, default: float) -> float:
        return default if self.number is None else self.number


@dataclass(frozen=True, slots=True)
class Freeze:
    """The whole server writes nothing for `for_s` seconds, from `after_s` after its first request on. What was due
    then leaves when it is over."""

    after_s: float
    for_s: float


Faults = Mapping[int, Fault] | Callable[[int, str], Fault | None]


@dataclass(frozen=True, slots=True)
class FakePlan:
    """How the fake behaves.

    A request holds one of `capacity` slots; the rest wait, first come first served. Once it has its slot its
    first event comes after `ttft_ms`, and token *i* after `i / tokens_per_s` more. An event carries `packing`
    tokens and leaves when its first is due. `length` is the answer's length where the request does not cut it
    shorter. With `cache_blocks` there is a prefix cache: usage says how much of the prompt came from there, and the
    rest takes its time, at `prefill_tokens_per_s`, before `ttft_ms` begins. Embeddings come after `ttft_ms`, in
    vectors of `dimensions` where the request asks for no fewer.
    With `requests_per_minute` or `tokens_per_minute` it is a hosted API: what is beyond them in any `window_s` seconds
    is answered 429, with Retry-After if it `says_when`.
    With `pings` a chat's role-only chunk comes at once, and `: ping` comments before each event. An event leaves in
    `split` writes to the connection. With `records` the fake keeps what it sent when (`FakeVllm.pace.sent`).
    `says` is called with each completion's prompt: the text that it answers with, or None for the fake's own words.
    `sure` is called so too, where an answer is constrained to labels: how probable its last one is (0–1).
    `faults` maps a request's number, or is called with its number and prompt.
    """

    model: str = "fake"
    ttft_ms: float = 0.0
    tokens_per_s: float = math.inf
    capacity: int = 256
    context_limit: int = 4096
    length: int = 16
    packing: int = 1
    cache_blocks: int = 0
    prefill_tokens_per_s: float = math.inf
    dimensions: int = 32
    key: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    window_s: float = 60.0
    says_when: bool = True
    pings: bool = False
    split: int = 1
    freeze: Freeze | None = None
    records: bool = False
    says: Callable[[str], str | None] | None = None
    sure: Callable[[str], float] | None = None
    faults: Faults | None = None

    def fault_for(self, number: int, prompt: str) -> Fault | None:
        if marker := _MARKER.search(prompt):
            return Fault(marker[1], float(marker[2]) if marker[2] else None)
        if self.faults is None:
            return None
        return self.faults(number, prompt) if callable(self.faults) else self.faults.get(number)
