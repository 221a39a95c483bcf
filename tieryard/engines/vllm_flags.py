"""Flags of `vllm serve`: what the installed vLLM knows, and the command line that a catalog's flags make.

vLLM adds and drops flags with every version. Its own help is the only list that is right, and takes some ten seconds
to print, so it is read once for each version of each environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import hashlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tieryard.engines.keeper import NOT_FOUND
from tieryard.errors import EngineDownError

STARTER = Path(__file__).with_name("vllm_starter.py")
_HELP_WITHIN_S = 300.0  # on a cold disk, loading PyTorch alone takes minutes
_MOST_PRINTED = 2**24  # what is read no more would hold up `wait`
_OPTIONS = re.compile(r"^ {2}(-.*?)(?: {2,}.*)?$", re.MULTILINE)  # what stands left of the help's second column
_LONG = re.compile(r"--([a-zA-Z0-9][\w-]*)")


@dataclass(frozen=True, slots=True)
class Flags:
    """What one installed vLLM takes: names as in a catalog (`max_model_len`), also those with `no_` before them."""

    version: str
    names: frozenset[str]


def read_help(text: str) -> frozenset[str]:
    """The flags that the output of `vllm serve --help=all` lists."""
    return frozenset(
        name.replace("-", "_") for options in _OPTIONS.findall(text) for name in _LONG.findall(_no_choices(options))
    )


def _no_choices(options: str) -> str:
    return re.sub(r"\{.*?\}|\[.*?\]", "", options)


async def installed_flags(python: str, cache_dir: Path, *, env: Mapping[str, str] | None = None) -> Flags:
    """What the vLLM in this interpreter's environment knows. Raises EngineDownError when there is none. What it starts
    to find out, with these environment variables, has ended when it returns, also when it is cancelled."""
    try:
        async with asyncio.timeout(_HELP_WITHIN_S):
            return await _read(python, cache_dir, env)
    except TimeoutError:
        raise EngineDownError(
            f"vLLM in the environment of {python} did not print its flags in {_HELP_WITHIN_S:g} s", sent=False
        ) from None


async def _read(python: str, cache_dir: Path, env: Mapping[str, str] | None) -> Flags:
    version = (await _run(python, env, "--version")).strip()
    name = hashlib.sha256(python.encode()).hexdigest()[:16]
    kept = cache_dir / "vllm-flags" / f"{name}.json"
    if (found := _kept(kept, python, version)) is not None:
        return found
    names = read_help(await _run(python, env, "serve", "--help=all"))
    if "max_model_len" not in names:
        raise EngineDownError(f"vLLM {version} in {python} lists no flags in `serve --help=all`", sent=False)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the next start some seconds
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")  # another infer process may write the same
        part.write_bytes(orjson.dumps({"python": python, "version": version, "names": sorted(names)}))
        part.replace(kept)
    return Flags(version, names)


def _kept(path: Path, python: str, version: str) -> Flags | None:
    try:
        found = orjson.loads(path.read_bytes())
        if (found["python"], found["version"]) == (python, version):
            return Flags(version, frozenset(found["names"]))
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        pass
    return None


async def _run(python: str, env: Mapping[str, str] | None, *arguments: str) -> str:
    """What it prints. Its keeper ends it at once when we are cancelled, and when this process dies."""
    keeper = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tieryard.engines.keeper", "0", python, str(STARTER), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
        start_new_session=True,
        limit=_MOST_PRINTED,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    assert keeper.stderr is not None
    try:
        said, complained = await asyncio.gather(keeper.stdout.read(), keeper.stderr.read())
    finally:
        keeper.stdin.close()
        code = await keeper.wait()
    if code != 0:
        raise EngineDownError(_refusal(python, code, complained.decode(errors="replace").strip()), sent=False)
    return said.decode(errors="replace")


def _refusal(python: str, code: int, complained: str) -> str:
    last = (complained.splitlines() or ["no word"])[-1][:200]
    if code == NOT_FOUND:
        why = last.removeprefix(f"{python}: ")
        return f"no interpreter {python} ({why}): name that of vLLM's environment as engine.python"
    if "PackageNotFoundError" in complained:
        return (
            f"no vLLM is installed in the environment of {python}: install it there, or name the interpreter of an "
            "environment that has it as engine.python"
        )
    return f"vLLM in the environment of {python} cannot be asked for its flags: {last}"


def check(flags: Mapping[str, Any], installed: Flags) -> None:
    """Raises EngineDownError that names every flag that the installed vLLM does not know, with the closest it does."""
    unknown = [name for name in flags if name not in installed.names]
    if unknown:
        said = "; ".join(f"'{name}'{_closest(name, installed.names)}" for name in unknown)
        raise EngineDownError(f"vLLM {installed.version} has no flag {said}: mend the engine's flags", sent=False)


def _closest(name: str, known: frozenset[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def arguments(flags: Mapping[str, Any], installed: Flags) -> list[str]:
    """The command line of flags that `check` has passed, in the catalog's order."""
    return [word for name, value in flags.items() for word in _words(name, value, installed.names)]


def _words(name: str, value: Any, known: frozenset[str]) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if value is True:
        return [option]
    if value is False:  # a flag that cannot be turned off is off unless it stands there
        return [f"--no-{option[2:]}"] if f"no_{name}" in known else []
    if isinstance(value, list):
        return [option, *(_text(item) for item in value)]
    return [f"{option}={_text(value)}"]  # in one word: a value may begin with a dash


def _text(value: Any) -> str:
    return orjson.dumps(value).decode() if isinstance(value, dict | list | bool) else f"{value}"
