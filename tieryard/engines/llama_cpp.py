"""llama.cpp's own server as a child process: real continuous batching on a machine without a GPU.

The child is this file run as a module. It lives as long as its standard input stays open, so it dies with
the worker that started it, however that worker dies.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from tieryard.engines import Stream
from tieryard.engines.load import Load
from tieryard.engines.openai_http import OpenAIHttpEngine
from tieryard.engines.vetting import Expected
from tieryard.errors import EngineDownError
from tieryard.weights import weights_path

_MEMORY_FLOOR = 64  # tokens a slot must at least hold for the chat template alone


class LlamaCppEngine:
    """Serves `weights` with `slots` requests decoded together, each with `context` tokens. With `embeddings` it
    serves vectors: the mean over a text's tokens, at length 1."""

    def __init__(
        self, weights: str, *, slots: int, context: int, threads: int | None = None, embeddings: bool = False
    ) -> None:
        self._weights = weights_path(weights)
        self._slots, self._context, self._threads = slots, max(context, _MEMORY_FLOOR), threads
        self._embeddings = embeddings
        self._child: asyncio.subprocess.Process | None = None
        self._http: OpenAIHttpEngine | None = None

    @property
    def url(self) -> str | None:
        return self._http.url if self._http is not None else None

    async def start(self) -> None:
        await self.close()
        command = [
            sys.executable, "-m", "tieryard.engines.llama_cpp",
            "--weights", str(self._weights),
            "--slots", str(self._slots),
            "--context", str(self._context),
            *(["--threads", str(self._threads)] if self._threads else []),
            *(["--embeddings"] if self._embeddings else []),
        ]  # fmt: skip
        self._child = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert self._child.stdout is not None
        try:
            line = await asyncio.wait_for(self._child.stdout.readline(), timeout=120)
        except TimeoutError:
            await self.close()
            raise EngineDownError(f"llama.cpp did not load {self._weights.name} in 120 s") from None
        if not line:
            code = await self._child.wait()
            raise EngineDownError(f"llama.cpp stopped with code {code} while loading {self._weights.name}")
        self._http = OpenAIHttpEngine(json.loads(line)["url"], model=self._weights.stem, server="llama_cpp")
        await self._http.start()

    async def stream(self, body: dict[str, Any]) -> Stream:
        if self._http is None:
            raise EngineDownError("llama.cpp is not started", sent=False)
        inner = self._http.stream(body)
        try:
            async for event in inner:
                yield event
        finally:
            await inner.aclose()

    async def faults(self, expected: Expected) -> list[str]:  # noqa: ARG002  # there is nothing to doubt
        return []

    async def load(self) -> Load | None:
        return None

    async def healthy(self) -> bool:
        return self._http is not None and await self._http.healthy()

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None
        if self._child is not None:
            if self._child.stdin is not None:
                self._child.stdin.close()
            try:
                await asyncio.wait_for(self._child.wait(), timeout=5)
            except TimeoutError:
                self._child.kill()
                await self._child.wait()
            self._child = None


def _serve() -> None:
    """The child: loads the weights, says where it listens, and waits for its input to close."""
    parser = argparse.ArgumentParser(prog="tieryard.engines.llama_cpp")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--embeddings", action="store_true")
    wanted = parser.parse_args()

    import xllamacpp  # here: loading it takes a second that nobody else should pay

    params = xllamacpp.CommonParams()
    params.model.path = wanted.weights
    params.port = 0
    params.n_parallel = wanted.slots
    params.n_ctx = wanted.slots * wanted.context
    params.endpoint_metrics = True
    params.verbosity = 1
    if wanted.threads:
        params.cpuparams.n_threads = wanted.threads
    if wanted.embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        # A text must go through in one pass, for the mean is taken over a pass. A cache split by slot would cut
        # texts of unequal length that share a batch into several.
        params.n_batch = params.n_ubatch = wanted.context
        params.kv_unified = True
    server = xllamacpp.Server(params)
    sys.stdout.write(json.dumps({"url": server.listening_address}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
