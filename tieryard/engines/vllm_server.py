"""`vllm serve` as a child process: started with the catalog's flags, watched, heard, and never left behind.

It runs in an environment of its own (`python`), since vLLM pins what it stands on. The infer process starts it through
`keeper.py`, which ends every process of it as soon as the infer process is gone, however that goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tieryard.catalog import Deployment, VllmEngine, served_model
from tieryard.engines import Stream
from tieryard.engines.load import Load
from tieryard.engines.openai_http import OpenAIHttpEngine
from tieryard.engines.vetting import Expected
from tieryard.engines.vllm_causes import cause
from tieryard.engines.vllm_flags import STARTER, Flags, arguments, check, installed_flags
from tieryard.errors import EngineDownError
from tieryard.telemetry import Event, logger

_SPARE = 8  # connections beside those of requests: for health checks, and while one closes
_GRACE_S = 8.0  # between asking vLLM's processes to stop and killing them
CLOSE_WITHIN_S = _GRACE_S + 4.0
"""So long may it take to end a server and all that it started."""
_LOOK_S = 0.25
_HEALTH_WITHIN_S = 5.0
_KEPT_LINES = 2_000  # a cause may stand far above the last line: each process adds a stack of its own
_LONGEST_LINE = 4_000
_LONGEST_LOGGED = 1_000
_MOST_UNBROKEN = 2**20
_LINE_ENDS = re.compile(r"[\r\n]+")  # progress bars go back to the line's beginning
_LOUD = re.compile(r"^(?P<head>(?:\([\w-]+ pid=\d+[^)]*\) )*(?:WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[\S+\])")
_ENGINES_OWN = re.compile(r"^\((?!APIServer)[\w-]+ pid=\d+")
# Where the engine's processes speak of a request: it may quote the caller's stop strings, choices, schemas, tokens.
_OF_A_REQUEST = re.compile(
    r"\[(?:dump_input|__init__|backend_\w+|detokenizer)\.py:\d|prompt|sampling_?params|pooling_?params|"
    r"structured_output|grammar|schema|regex|for tokens?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class VllmFacts:
    """What a server has said of itself while it started; None where it has not."""

    version: str
    kv_cache_tokens: int | None = None
    max_concurrency: float | None = None
    chunked_prefill: bool | None = None
    max_num_batched_tokens: int | None = None

    def told(self, line: str) -> VllmFacts:
        """These facts, and those of one more line of the log."""
        known = self
        if found := re.search(r"KV cache size: ([\d,]+) tokens", line):
            known = replace(known, kv_cache_tokens=int(found[1].replace(",", "")))
        if found := re.search(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x", line):
            known = replace(known, max_concurrency=float(found[1]))
        if found := re.search(r"\benable_chunked_prefill=(True|False)", line):
            known = replace(known, chunked_prefill=found[1] == "True")
        if found := re.search(r"Chunked prefill is enabled with max_num_batched_tokens=(\d+)", line):
            known = replace(known, chunked_prefill=True, max_num_batched_tokens=int(found[1]))
        # Of the engine's configuration, which names the size of a step only as the end of what is compiled for.
        if found := re.search(r"'compile_ranges_endpoints': \[(?:\d+, )*(\d+)\]", line):
            known = replace(known, max_num_batched_tokens=int(found[1]))
        return known


class VllmServerEngine:
    """Serves one deployment of kind `vllm_server`, and its LoRA `adapters` (name → weights) under their own names.
    `secrets` are environment variables that are not for it to see."""

    def __init__(
        self,
        name: str,
        deployment: Deployment,
        *,
        adapters: Mapping[str, str],
        cache_dir: Path,
        secrets: Collection[str] = (),
    ) -> None:
        if not isinstance(deployment.engine, VllmEngine):
            raise TypeError(f"deployment '{name}' is not a vllm_server")
        self._deployment, self._spec = deployment, deployment.engine
        self._python = deployment.engine.python or sys.executable
        self._adapters, self._cache_dir = dict(adapters), cache_dir
        self._secrets = frozenset(secrets)
        self._log = logger(deployment=name)
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._phase: Literal["starting", "serving", "stopping"] = "stopping"
        self._keeper: asyncio.subprocess.Process | None = None
        self._ended: asyncio.Task[int] | None = None
        self._http: OpenAIHttpEngine | None = None
        self._closing = asyncio.Lock()
        self.facts: VllmFacts | None = None
        """Of the server that runs, or ran last."""

    @property
    def url(self) -> str | None:
        return self._http.url if self._http is not None else None

    @property
    def _environment(self) -> dict[str, str]:
        return environment(self._spec.env, python=self._python, secrets=self._secrets)

    @property
    def log_tail(self) -> list[str]:
        """What the server said last."""
        return list(self._lines)

    async def start(self) -> None:
        await self.close()
        async with self._closing:  # whoever closes meanwhile waits for the end of what is asked
            flags = await installed_flags(self._python, self._cache_dir, env=self._environment)
        port = _free_port()
        command = serve_command(self._deployment, self._adapters, flags, port=port)
        batched = self._spec.flags.get("max_num_batched_tokens")
        self.facts = VllmFacts(flags.version, max_num_batched_tokens=batched if isinstance(batched, int) else None)
        self._lines.clear()
        self._phase = "starting"
        self._keeper = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tieryard.engines.keeper", f"{_GRACE_S}", self._python, *command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )
        self._ended = asyncio.create_task(self._attend(self._keeper))
        self._http = OpenAIHttpEngine(
            f"http://127.0.0.1:{port}",
            model=served_model(self._deployment),
            server="vllm",
            connections=self._deployment.max_in_flight + _SPARE,
        )
        try:
            await self._until_ready(self._http, self._ended)
            await self._http.start()
        except BaseException:
            await self.close()
            raise
        self._phase = "serving"
        self._log.info(Event.ENGINE_SAID, **asdict(self.facts))

    async def _until_ready(self, http: OpenAIHttpEngine, ended: asyncio.Task[int]) -> None:
        """Returns when the server answers. Raises EngineDownError with the cause when it ends, or takes too long."""
        within_s = self._spec.start_within.total_seconds()
        deadline = time.monotonic() + within_s
        while True:
            if ended.done():
                raise EngineDownError(f"vLLM did not start: {cause(self._lines, ended.result())}", sent=False)
            if time.monotonic() > deadline:
                raise EngineDownError(
                    f"vLLM did not answer within {within_s:g} s (start_within); {cause(self._lines, None)}", sent=False
                )
            with contextlib.suppress(EngineDownError):
                if (await http.ask("/health"))[0] == 200:
                    return
            await asyncio.wait({ended}, timeout=_LOOK_S)

    async def healthy(self) -> bool:
        if self._http is None or self._ended is None or self._ended.done():
            return False
        try:
            return (await asyncio.wait_for(self._http.ask("/health"), _HEALTH_WITHIN_S))[0] == 200
        except (EngineDownError, TimeoutError):
            return False

    async def faults(self, expected: Expected) -> list[str]:
        return await self._served().faults(expected)

    async def load(self) -> Load | None:
        return await self._http.load() if self._http is not None else None

    async def stream(self, body: dict[str, Any]) -> Stream:
        inner = self._served().stream(body)
        try:
            async for event in inner:
                yield event
        finally:
            await inner.aclose()

    def _served(self) -> OpenAIHttpEngine:
        if self._http is None:
            raise EngineDownError("vLLM is not started", sent=False)
        return self._http

    async def close(self) -> None:
        async with self._closing:  # a start that is called off closes too
            if self._http is not None:
                await self._http.close()
                self._http = None
            if self._keeper is None or self._ended is None:
                return
            self._phase = "stopping"
            if self._keeper.stdin is not None:
                self._keeper.stdin.close()
            done, _ = await asyncio.wait({self._ended}, timeout=CLOSE_WITHIN_S)
            if not done:
                _kill_group(self._keeper.pid)
                await self._ended
            self._keeper = self._ended = None

    # --- what the server says --------------------------------------------------------------------------

    async def _attend(self, keeper: asyncio.subprocess.Process) -> int:
        """Hears the server to its end, and returns its code: negative for a signal."""
        hearing = asyncio.create_task(self._listen(keeper))
        while not hearing.done() and keeper.returncode is None:  # `wait` also waits for the pipe, which orphans hold
            await asyncio.wait({hearing}, timeout=_LOOK_S)
        if keeper.returncode is not None and keeper.returncode < 0:  # the keeper itself was killed, and kept nothing
            _kill_group(keeper.pid)
        await hearing
        code = await keeper.wait()
        code = 128 - code if code > 128 else code
        if self._phase == "serving":
            self._log.error(Event.ENGINE_DOWN, error=f"vLLM has stopped: {cause(self._lines, code)}")
        return code

    async def _listen(self, keeper: asyncio.subprocess.Process) -> None:
        assert keeper.stdout is not None
        rest = ""
        while part := await keeper.stdout.read(2**16):
            *lines, rest = _LINE_ENDS.split(rest + part.decode(errors="replace"))
            for line in lines:
                self._hear(line)
            rest = rest if len(rest) < _MOST_UNBROKEN else ""
        self._hear(rest)

    def _hear(self, line: str) -> None:
        """Keeps and logs a line. Once requests come, what the API server says may quote them, and so may what its
        engine says of one: of these only the place is told. What a server says when it is asked to stop is not worth
        telling."""
        if not line.strip():
            return
        loud = _LOUD.match(line) if self._phase == "serving" else None
        if self._phase == "starting":
            self._lines.append(line[:_LONGEST_LINE])
            self.facts = self.facts.told(line) if self.facts is not None else None
            self._log.info(Event.ENGINE_SAID, line=line[:_LONGEST_LOGGED])
        elif _ENGINES_OWN.match(line) and not _OF_A_REQUEST.search(line):
            self._lines.append(line[:_LONGEST_LINE])
            (self._log.info if loud else self._log.debug)(Event.ENGINE_SAID, line=line[:_LONGEST_LOGGED])
        elif loud:
            self._log.info(Event.ENGINE_SAID, line=loud["head"])


def serve_command(deployment: Deployment, adapters: Mapping[str, str], installed: Flags, *, port: int) -> list[str]:
    """What the other environment's interpreter is given: the starter, and `serve` with every flag. Raises
    EngineDownError for flags that the installed vLLM does not know, and for weights that are nowhere."""
    spec = deployment.engine
    assert isinstance(spec, VllmEngine)
    weights = spec.weights or deployment.model
    flags: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "served_model_name": served_model(deployment),
        "max_model_len": deployment.context_limit,
    }
    if not _is_local(weights):
        flags["revision"] = deployment.revision
        if spec.flags.get("tokenizer", weights) == weights:
            flags["tokenizer_revision"] = deployment.revision
    # The former tells what came from the prefix cache; without the latter, every request is a line through the pipe.
    wanted = ("enable_prompt_tokens_details", "disable_uvicorn_access_log")
    flags |= dict.fromkeys((name for name in wanted if name in installed.names), True)
    if adapters:
        flags |= {"enable_lora": True, "max_loras": len(adapters)}  # by default one at a time, and the others wait
        flags["lora_modules"] = [f"{name}={path}" for name, path in adapters.items()]
    flags |= spec.flags
    check(flags, installed)
    return [str(STARTER), "serve", weights, *arguments(flags, installed)]


def _is_local(weights: str) -> bool:
    if Path(weights).exists():
        return True
    if weights.startswith(("/", "./", "../", "~")):
        raise EngineDownError(f"weights '{weights}': no such directory here; mend the engine's weights", sent=False)
    return False


def environment(own: Mapping[str, str], *, python: str, secrets: Collection[str] = ()) -> dict[str, str]:
    """For vLLM: ours without what is the fleet's alone (`secrets` too, the keys of other engines), with its own
    programs first on the path. A key that it would demand (`VLLM_API_KEY`) is not passed on: the fleet sends none."""
    kept_back = {"VLLM_API_KEY", *secrets}
    found = {k: v for k, v in os.environ.items() if not k.startswith("TIERYARD_") and k not in kept_back}
    program = shutil.which(python)
    if program is not None:
        found["PATH"] = os.pathsep.join(part for part in (str(Path(program).parent), found.get("PATH")) if part)
    return found | {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"} | dict(own)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
