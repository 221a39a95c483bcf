"""What the fleet makes of real vLLM on the CPU, beside vLLM's own load generator on the same server, in one run; and
the times to the first and the next tokens with prompts read in chunks, in small chunks and whole.

Run by `make bench-vllm`. The server is the fleet's own; `vllm bench serve` is sent to it between the fleet's rounds.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import Figure
from tests.benchmarks.report import report
from tests.vllm.engine import MODEL, PYTHON, WEIGHTS, serving
from tests.vllm.fleet import Running, run_fleet
from tieryard.engines.vllm_flags import STARTER
from tieryard.engines.vllm_server import VllmFacts
from tieryard.telemetry import configure

OUT = Path("build/bench-vllm.json")
PACKAGES = ("tieryard", "celery", "httpx", "aiohttp", "httpx-aiohttp", "fastapi", "psycopg")
LEAST_RATIO = 0.97
"""Of the fleet's throughput to its peer's: below, the run fails."""

ROUNDS = 3
CONCURRENCY = 32
JOBS = 12 * CONCURRENCY
TOKENS = 64
"""An answer, whatever the model would say: the end of the text is ignored."""


@dataclass(frozen=True)
class Round:
    """What one round generated, and how long it took."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def prompts(name: str, n: int) -> list[str]:
    """Different in their first words from round to round, so that no prefix cache helps."""
    return [f"{name} {i}: describe the way from the harbour of Oslo to house number {i} in one page." for i in range(n)]


def peer_results(url: str, asked: list[str], work: Path, *, tokens: int, concurrency: int) -> dict[str, Any]:
    """One run of vLLM's own benchmark: what it saves."""
    lines, saved = work / "prompts.jsonl", work / "saved.json"
    lines.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked))
    command = [
        PYTHON, str(STARTER), "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions",
        "--base-url", url, "--model", MODEL, "--tokenizer", WEIGHTS, "--dataset-name", "custom",
        "--dataset-path", str(lines), "--skip-chat-template", "--custom-output-len", str(tokens), "--ignore-eos",
        "--num-prompts", str(len(asked)), "--max-concurrency", str(concurrency), "--request-rate", "inf",
        "--ready-check-timeout-sec", "0", "--disable-tqdm", "--save-result", "--save-detailed",
        "--result-dir", str(work), "--result-filename", saved.name,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, Any] = json.loads(saved.read_text()) if saved.exists() else {}
    saved.unlink(missing_ok=True)
    if found.get("completed") != len(asked):
        raise SystemExit(f"vllm bench serve: {found.get('completed')} of {len(asked)}\n{done.stdout}{done.stderr}")
    return found


def peer_round(url: str, asked: list[str], work: Path) -> Round:
    found = peer_results(url, asked, work, tokens=TOKENS, concurrency=CONCURRENCY)
    return Round(found["total_output_tokens"], found["duration"])


def fleet_round(fleet: Running, asked: list[str]) -> Round:
    """From the upload of the file to the end of its batch, from when on its output can be fetched."""
    started = time.time()
    batch = fleet.submit(asked, max_tokens=TOKENS, ignore_eos=True)
    while (seen := fleet.client.batches.retrieve(batch)).status not in ("completed", "failed", "expired"):
        time.sleep(1.0)  # looking costs the machine that is measured
    if seen.request_counts is None or seen.request_counts.completed != len(asked):
        raise SystemExit(f"{batch}: {seen.status}, {seen.request_counts}")
    [(finished,)] = fleet.rows("SELECT finished_at FROM batch ORDER BY id DESC LIMIT 1")  # OpenAI's are whole seconds
    answers = fleet.answers(seen.output_file_id or "")
    tokens = sum(answer["response"]["body"]["usage"]["completion_tokens"] for answer in answers)
    return Round(tokens, finished.timestamp() - started)


def throughput(work: Path) -> list[Figure]:
    """Rounds alternate, so that both meet the same machine."""
    ours: list[Round] = []
    theirs: list[Round] = []
    with run_fleet(in_flight=CONCURRENCY, max_num_seqs=CONCURRENCY) as fleet:
        fleet_round(fleet, prompts("Warm-up", CONCURRENCY))
        for n in range(ROUNDS):
            theirs.append(peer_round(fleet.server, prompts(f"Peer's round {n}, letter", JOBS), work))
            ours.append(fleet_round(fleet, prompts(f"Fleet's round {n}, letter", JOBS)))
            print(f"round {n}: {theirs[-1].tokens_per_s:.1f} tok/s, the fleet {ours[-1].tokens_per_s:.1f}", flush=True)
    if {r.tokens for r in ours + theirs} != {JOBS * TOKENS}:
        raise SystemExit(f"not the same work: {ours}, {theirs}")
    return [
        Figure.median(
            "fleet_output_throughput",
            "tok/s",
            [r.tokens_per_s for r in ours],
            peer="vllm bench serve",
            peer_values=[r.tokens_per_s for r in theirs],
        )
    ]


# One prompt in eight fills most of the context: what chunks are for.
CONTEXT = 2048
LONG_WORDS = 320
MIXED = 96
AT_ONCE = 16
ANSWER = 32
WHOLE = {"enable_chunked_prefill": False, "max_num_batched_tokens": CONTEXT}
SMALL = {"max_num_batched_tokens": 256}
"""Chunks so small that a step's other requests hardly wait for them."""


def mixed(name: str) -> list[str]:
    """Short prompts, and every eighth a long one."""
    short = [f"{name} {i}: what is the way to the harbour?" for i in range(MIXED)]
    filler = [" ".join(f"w{i + word}" for word in range(LONG_WORDS)) for i in range(MIXED)]
    return [f"{text} {filler[i]}" if i % 8 == 0 else text for i, text in enumerate(short)]


@dataclass(frozen=True)
class Prefill:
    """How a server reads prompts, in its own words, and the times that requests then see, in milliseconds."""

    facts: VllmFacts
    ttft_ms: list[float]
    itl_ms: list[float]


async def prefill(work: Path, flags: dict[str, Any]) -> Prefill:
    """What `vllm bench serve` sees of a server with these flags."""
    async with serving(work, context=CONTEXT, in_flight=AT_ONCE, max_num_seqs=AT_ONCE, **flags) as server:
        found = await asyncio.to_thread(
            peer_results, server.url or "", mixed("Letter"), work, tokens=ANSWER, concurrency=AT_ONCE
        )
        assert server.facts is not None
        gaps = [1000 * gap for gaps in found["itls"] for gap in gaps]
        return Prefill(server.facts, [1000 * ttft for ttft in found["ttfts"]], gaps)


def prefills(work: Path) -> tuple[list[Figure], VllmFacts]:
    """TTFT and ITL with prompts read in chunks, beside those with prompts read whole."""
    whole = asyncio.run(prefill(work, WHOLE))
    own, small = asyncio.run(prefill(work, {})), asyncio.run(prefill(work, SMALL))
    figures = []
    for name, measured in (("as_vllm_does", own), ("chunked_256", small)):
        for metric, p, ours, theirs in (
            ("ttft", 50, measured.ttft_ms, whole.ttft_ms),
            ("ttft", 95, measured.ttft_ms, whole.ttft_ms),
            ("itl", 50, measured.itl_ms, whole.itl_ms),
            ("itl", 99, measured.itl_ms, whole.itl_ms),
        ):
            figures.append(
                Figure.percentile(f"{metric}_p{p}_{name}", "ms", p, ours, peer="prompts read whole", peer_values=theirs)
            )
    return figures, own.facts


def main() -> None:
    configure(level="warning")  # a start of vLLM has a hundred lines to say
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        work = Path(home)
        figures = throughput(work)
        more, facts = prefills(work)
    report(OUT, figures + more, PACKAGES, {"vllm": facts.version})
    print(f"vLLM {facts.version} by default: chunked prefill {'on' if facts.chunked_prefill else 'off'}.")
    if short := [f"{f.figure}: {f.ratio} of {f.peer}" for f in figures if f.ratio < LEAST_RATIO]:
        raise SystemExit(f"less than {LEAST_RATIO}: {', '.join(short)}")


if __name__ == "__main__":
    main()
