"""An interpreter's stand-in whose environment has a vLLM: it answers for the starter, and serves by the fake vLLM."""

import stat
import sys
from pathlib import Path

HELP = """\
usage: vllm serve [model_tag] [options]

options:
  --config CONFIG       Read CLI options from a config file; see --no-such-flag in its help. (default: None)
  -h, --help            show this help message and exit

Frontend:
  --api-server-count API_SERVER_COUNT, -asc API_SERVER_COUNT
                        How many. Cannot be combined with --grpc-port. (default: None)
  --disable-log-stats   Disable logging statistics. (default: False)
  --disable-uvicorn-access-log, --no-disable-uvicorn-access-log
  --enable-prompt-tokens-details, --no-enable-prompt-tokens-details
  --host HOST           Host name. (default: None)
  --port PORT           Port number. (default: 8000)
  --lora-modules LORA_MODULES [LORA_MODULES ...]
  --enable-lora, --no-enable-lora
  --max-lora-rank {1,8,16,32,64,--odd}
  --max-loras MAX_LORAS
  --enable-chunked-prefill, --no-enable-chunked-prefill
  --gpu-memory-utilization, --device-memory-utilization GPU_MEMORY_UTILIZATION
  --max-model-len MAX_MODEL_LEN
  --max-num-batched-tokens MAX_NUM_BATCHED_TOKENS
  --middleware MIDDLEWARE
  --quantization QUANTIZATION, -q QUANTIZATION
  --revision REVISION   The revision. (default: None)
  --served-model-name SERVED_MODEL_NAME [SERVED_MODEL_NAME ...]
  --speculative-config SPECULATIVE_CONFIG, -sc SPECULATIVE_CONFIG
  --tensor-parallel-size TENSOR_PARALLEL_SIZE, -tp TENSOR_PARALLEL_SIZE
  --tokenizer TOKENIZER
  --tokenizer-revision TOKENIZER_REVISION
  --trust-remote-code, --no-trust-remote-code
"""

_SCRIPT = """\
#!{python}
import json, os, sys, time
from pathlib import Path
_, starter, *words = sys.argv
with Path({asked!r}).open("a") as asked:
    asked.write(json.dumps(words) + "\\n")
if words == ["--version"]:
    print({version!r})
elif words == ["serve", "--help=all"]:
    print({help!r})
else:
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    Path({asked!r}).with_name("environment.json").write_text(json.dumps(dict(os.environ)))
    for line in json.loads(os.environ.get("SAYS", "[]")):
        print(line, file=sys.stderr, flush=True)
    if "ENDS" in os.environ:
        sys.exit(int(os.environ["ENDS"]))
    if "HANGS" in os.environ:
        time.sleep(600)
    if os.fork() == 0:
        time.sleep(600)
    os.execv({python!r}, [{python!r}, "-m", "tieryard.testing.fake_vllm", "--port", options["port"], "--model",
                          options["served-model-name"]])
"""


def write_python(folder: Path, *, version: str = "0.32.0", help_text: str = HELP) -> Path:
    """Its path. What it was asked stands beside it, in `asked.jsonl`."""
    path = folder / "python"
    asked = str(folder / "asked.jsonl")
    path.write_text(_SCRIPT.format(python=sys.executable, asked=asked, version=version, help=help_text))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def write_slow_python(folder: Path) -> Path:
    """One that never comes to print its flags. Its process is named in `pid`, beside it."""
    path = folder / "slow-python"
    path.write_text(
        f'#!/bin/sh\nif [ "$2" = --version ]; then echo 0.32.0; exit; fi\necho $$ > {folder}/pid\nexec sleep 600\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def asked_of(folder: Path) -> list[str]:
    """Every command line so far."""
    path = folder / "asked.jsonl"
    return path.read_text().splitlines() if path.exists() else []
