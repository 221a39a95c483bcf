"""What a vLLM server says of its own load, read from its `/metrics`.

The names are vLLM's, see https://docs.vllm.ai/en/stable/design/metrics/. Counters grow since its start, so that two
looks tell what happened between them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

_PREFIX = "vllm:"
_STARTED = "process_start_time_seconds"
_TTFT = "time_to_first_token_seconds"
_READ = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "gpu_cache_usage_perc",  # its name before 0.10
    "num_preemptions",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "prompt_tokens",
    "generation_tokens",
    "cache_config_info",
    _TTFT,
)


@dataclass(frozen=True, slots=True)
class Load:
    """One look. Requests and counters are summed over the server's engines; `kv_usage`, 0 to 1, is of the fullest.

    `prefix_queries` and `prefix_hits` are prompt tokens looked up and found in the prefix cache. `tokens` are those of
    prompts and answers so far. `started_at` (epoch seconds) tells one server from the next. `kv_tokens` is what the KV
    cache holds at all. `ttft_counts` is the histogram: (upper bound in seconds, requests up to it).
    """

    running: int
    waiting: int
    kv_usage: float
    preemptions: int
    prefix_queries: int = 0
    prefix_hits: int = 0
    tokens: int = 0
    started_at: float | None = None
    kv_tokens: int | None = None
    ttft_counts: tuple[tuple[float, int], ...] = ()

    def ttft_ms_since(self, before: Load | None, quantile: float) -> float | None:
        """The quantile of TTFT among requests that got their first token since an earlier look, as the upper bound of
        its bucket; None when there were none. As Prometheus' `histogram_quantile`, without interpolation."""
        old = dict(before.ttft_counts) if before is not None else {}
        counts = [(bound, n - old.get(bound, 0)) for bound, n in self.ttft_counts]
        total = counts[-1][1] if counts else 0
        if total <= 0:
            return None
        found = next(bound for bound, n in counts if n >= quantile * total)
        finite = [bound for bound, _ in counts if math.isfinite(bound)]
        return 1000 * (found if math.isfinite(found) else finite[-1])


class _Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


def load_from(stored: dict[str, Any]) -> Load:
    """A look that was written as JSON. Of the fields we know: a newer process may write more."""
    known = {f.name for f in dataclasses.fields(Load)}
    return Load(**{name: value for name, value in stored.items() if name in known and name != "ttft_counts"})


def read_load(text: str) -> Load | None:
    """From the text of `/metrics`; None when it is not vLLM's."""
    samples = list(_samples(text))

    def values(name: str) -> list[float]:
        return [s.value for s in samples if s.name == name]

    running = values("num_requests_running")
    if not running:
        return None
    counts: dict[float, int] = {}
    for sample in samples:
        if sample.name == f"{_TTFT}_bucket":
            bound = float(sample.labels["le"])
            counts[bound] = counts.get(bound, 0) + int(sample.value)
    return Load(
        running=int(sum(running)),
        waiting=int(sum(values("num_requests_waiting"))),
        kv_usage=max(values("kv_cache_usage_perc") or values("gpu_cache_usage_perc"), default=0.0),
        preemptions=int(sum(values("num_preemptions_total"))),
        prefix_queries=int(sum(values("prefix_cache_queries_total"))),
        prefix_hits=int(sum(values("prefix_cache_hits_total"))),
        tokens=int(sum(values("prompt_tokens_total")) + sum(values("generation_tokens_total"))),
        started_at=next(iter(values(_STARTED)), None),
        kv_tokens=_kv_tokens(samples),
        ttft_counts=tuple(sorted(counts.items())),
    )


def _samples(text: str) -> Iterator[_Sample]:
    """Of the families that are read: a server has hundreds of others, which would take the parser 10 ms."""
    wanted = (*(_PREFIX + name for name in _READ), _STARTED)
    lines = "\n".join(line for line in text.splitlines() if line.startswith(wanted))
    for family in text_string_to_metric_families(lines + "\n"):
        for sample in family.samples:
            yield _Sample(sample.name.removeprefix(_PREFIX), sample.labels, float(sample.value))


def _kv_tokens(samples: list[_Sample]) -> int | None:
    """Blocks × tokens a block, as the server writes them into labels; None where it does not say."""
    total = 0
    for sample in samples:
        if sample.name == "cache_config_info":
            try:
                total += int(sample.labels["num_gpu_blocks"]) * int(sample.labels["block_size"])
            except (KeyError, ValueError):
                return None
    return total or None
