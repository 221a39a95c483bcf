"""A catalog's flags are held to what the installed vLLM knows, and become its command line."""

import asyncio
import subprocess
import sys

import pytest

from tests.conftest import eventually
from tests.unit.engines.test_keeper import runs
from tests.unit.engines.vllm_script import HELP, asked_of, write_python, write_slow_python
from tieryard.engines import vllm_flags
from tieryard.engines.vllm_flags import Flags, arguments, check, installed_flags, read_help
from tieryard.errors import EngineDownError

KNOWN = Flags("0.32.0", read_help(HELP))


def test_every_option_of_the_help_is_a_flag_and_nothing_else_is():
    assert {"config", "help", "max_model_len", "quantization", "no_enable_lora", "disable_log_stats"} <= KNOWN.names
    assert {"gpu_memory_utilization", "device_memory_utilization"} <= KNOWN.names  # two names of one
    assert KNOWN.names.isdisjoint({"no_such_flag", "grpc_port", "odd", "asc", "q", "no_max_model_len"})


async def test_the_help_is_read_once_for_a_version(tmp_path):
    cache = tmp_path / "cache"
    python = write_python(tmp_path)
    found = await installed_flags(str(python), cache)
    assert found == KNOWN
    assert await installed_flags(str(python), cache) == found
    assert asked_of(tmp_path) == ['["--version"]', '["serve", "--help=all"]', '["--version"]']
    write_python(tmp_path, version="0.33.0", help_text=HELP.replace("--quantization", "--new-word"))
    newer = await installed_flags(str(python), cache)
    assert newer.version == "0.33.0"
    assert newer.names - found.names == {"new_word"}


async def test_a_spoilt_cache_is_read_anew(tmp_path):
    python = str(write_python(tmp_path))
    await installed_flags(python, tmp_path)
    [kept] = (tmp_path / "vllm-flags").iterdir()
    for text in ("", "[]", "{}"):
        kept.write_text(text)
        assert await installed_flags(python, tmp_path) == KNOWN


async def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert await installed_flags(str(write_python(tmp_path)), tmp_path / "file") == KNOWN


async def test_an_environment_without_vllm_is_said_so(tmp_path):
    with pytest.raises(EngineDownError, match="no vLLM is installed in the environment of"):
        await installed_flags(sys.executable, tmp_path)
    with pytest.raises(EngineDownError, match=r"no interpreter /nowhere/python \(No such file or directory\)"):
        await installed_flags("/nowhere/python", tmp_path)


async def test_a_vllm_that_cannot_print_its_flags_is_said_so(tmp_path):
    with pytest.raises(EngineDownError, match="lists no flags"):
        await installed_flags(str(write_python(tmp_path, help_text="")), tmp_path)
    python = tmp_path / "broken"
    python.write_text("#!/bin/sh\necho 'ImportError: no torch' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(EngineDownError, match="cannot be asked for its flags: ImportError: no torch"):
        await installed_flags(str(python), tmp_path)


def pid_in(folder):
    """Of the slow stand-in that runs, once it does."""
    eventually(lambda: (folder / "pid").exists() and (folder / "pid").read_text().endswith("\n"), what="its start")
    return int((folder / "pid").read_text())


async def test_nothing_runs_on_when_asking_is_called_off(tmp_path):
    asking = asyncio.create_task(installed_flags(str(write_slow_python(tmp_path)), tmp_path))
    pid = await asyncio.to_thread(pid_in, tmp_path)
    assert runs(pid)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not runs(pid)


async def test_a_vllm_that_takes_too_long_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_flags, "_HELP_WITHIN_S", 0.0)
    with pytest.raises(EngineDownError, match="did not print its flags in 0 s"):
        await installed_flags(str(write_slow_python(tmp_path)), tmp_path)


ASKS = """
import asyncio, sys
from pathlib import Path
from tieryard.engines.vllm_flags import installed_flags
asyncio.run(installed_flags(sys.argv[1], Path(sys.argv[2])))
"""


def test_nothing_runs_on_when_the_process_that_asks_is_killed(tmp_path):
    python = str(write_slow_python(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ASKS, python, str(tmp_path)]) as asker:
        pid = pid_in(tmp_path)
        asker.kill()
    eventually(lambda: not runs(pid), what="the end of what was asked")


def test_every_unknown_flag_is_named_with_the_closest_known():
    check({"max_model_len": 1, "enable_lora": False}, KNOWN)
    with pytest.raises(EngineDownError) as caught:
        check({"max_modl_len": 2048, "quantization": "awq", "zzz": 1}, KNOWN)
    assert caught.value.message == (
        "vLLM 0.32.0 has no flag 'max_modl_len' (did you mean 'max_model_len'?); 'zzz': mend the engine's flags"
    )
    assert not caught.value.sent


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, []),
        ({"max_model_len": 2048}, ["--max-model-len=2048"]),
        ({"gpu_memory_utilization": 0.85}, ["--gpu-memory-utilization=0.85"]),
        ({"quantization": "awq"}, ["--quantization=awq"]),
        ({"tokenizer": "-odd"}, ["--tokenizer=-odd"]),
        ({"enable_chunked_prefill": True}, ["--enable-chunked-prefill"]),
        ({"enable_chunked_prefill": False}, ["--no-enable-chunked-prefill"]),
        ({"disable_log_stats": False}, []),
        ({"lora_modules": ["a=/a", "b=/b"]}, ["--lora-modules", "a=/a", "b=/b"]),
        ({"speculative_config": {"method": "ngram", "n": 3}}, ['--speculative-config={"method":"ngram","n":3}']),
        ({"port": 1, "host": "h"}, ["--port=1", "--host=h"]),
    ],
)
def test_flags_become_words_of_a_command_line(flags, words):
    assert arguments(flags, KNOWN) == words
