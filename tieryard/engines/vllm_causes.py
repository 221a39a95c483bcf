"""Why a vLLM did not start: one plain sentence from its log, with the log's own figures and what to do.

The cause stands early in the log: what follows is what it brought down, up to "Engine core initialization failed".
So the first line that a pattern knows decides. The wordings are those of vLLM, PyTorch, transformers and the hub.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable

_PREFIX = re.compile(
    r"^(?:\([\w-]+ (?:pid|rank)=\d+[^)]*\) )*(?:(?P<level>[A-Z]+) \d\d-\d\d [\d:]+ \[\S+\] ?)?(?P<said>.*)$"
)
_HARMLESS = frozenset({"DEBUG", "INFO", "WARNING"})
_WINDOW = 4  # lines: some errors are told over several
_ERROR = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception|Interrupt)): (.+)")
_SECOND_HAND = ("Engine core initialization failed", "Worker failed with error", "Executor failed")
_LONGEST = 400
_ON_CPU = re.compile(r"device_config=cpu\b|\[cpu_worker\.py:|\bCPU KV cache size")
_MORE_CACHE = "raise gpu_memory_utilization"
_MORE_CACHE_ON_CPU = "raise VLLM_CPU_KVCACHE_SPACE"

_Say = str | Callable[[re.Match[str]], str]


def _refused(found: re.Match[str]) -> str:
    text, was = found["what"].strip(), found["was"]
    return f"vLLM refuses {found['field']}: {text[:1].lower()}{text[1:]} (it was {was}); mend it in the engine's flags"


def _no_length(found: re.Match[str]) -> str:
    fits = f"; at most {found['fits']} would fit" if found["fits"] else ""
    return (
        f"max_model_len {found['length']} needs {found['needed']} GiB of KV cache for one request and there are "
        f"{found['there']} GiB{fits}: lower max_model_len and context_limit, {_MORE_CACHE}, or use more GPUs"
    )


def _out_of_memory(found: re.Match[str]) -> str:
    figures = re.search(
        r"Tried to allocate ([\d.]+ \w+)\.(?:.*?total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free)?",
        found.string,
        re.DOTALL,
    )
    told = ""
    if figures:
        told = f" (it wanted {figures[1]} more" + (f"; {figures[3]} of {figures[2]} were free)" if figures[2] else ")")
    return (
        f"the GPU is out of memory{told}: if the weights fit, lower gpu_memory_utilization or max_num_seqs; if they do "
        "not, use quantized weights or more GPUs (tensor_parallel_size)"
    )


# What fits several says what the first of them says: the generic ones stand last.
_CAUSES: tuple[tuple[re.Pattern[str], _Say], ...] = tuple(
    (re.compile(pattern, re.DOTALL), say)
    for pattern, say in (
        # --- memory
        (r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory", _out_of_memory),
        (
            r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than "
            r"desired \w+ memory utilization \((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
            "{wanted} GiB would be taken (a share of {share}) and {free} of {total} GiB are free: set "
            "VLLM_CPU_KVCACHE_SPACE (GiB) to what the KV cache may have, or stop what else uses the memory",
        ),
        (
            r"Free memory on device \S+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) "
            r"on startup is less than desired \w+ memory utilization \((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
            "gpu_memory_utilization {share} means {wanted} GiB and {free} of {total} GiB are free: lower it, or stop "
            "what else uses the memory",
        ),
        (
            r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on kv cache allocation is less "
            r"than requested memory for kv \((?P<wanted>[\d.]+) GiB\)",
            "a KV cache of {wanted} GiB was asked for and {free} of {total} GiB are free: lower "
            "VLLM_CPU_KVCACHE_SPACE or kv_cache_memory_bytes, or stop what else uses the memory",
        ),
        (
            r"at least one request with the models?'s? max(?:imum)? seq(?:uence)? len(?:gth)? \((?P<length>\d+)\), "
            r"\(?(?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the available KV cache memory "
            r"\((?P<there>[\d.]+) GiB\)(?:.*?estimated maximum model length is (?P<fits>\d+))?",
            _no_length,
        ),
        (
            r"No available memory for the cache blocks",
            f"the weights leave no memory for the KV cache: {_MORE_CACHE}, or use quantized weights or more GPUs "
            "(tensor_parallel_size)",
        ),
        # --- sizes
        (
            r"User-specified max_model_len \((?P<length>\d+)\) is greater than the derived max_model_len "
            r"\([a-z_]+=(?P<most>\d+)",
            "max_model_len {length} is more than the model's own {most}: lower max_model_len and context_limit",
        ),
        (
            r"max_num_batched_tokens \((?P<batched>\d+)\) is smaller than max_model_len \((?P<length>\d+)\)",
            "max_num_batched_tokens {batched} is below max_model_len {length} while chunked prefill is off: raise it "
            "to {length}, or set enable_chunked_prefill: true",
        ),
        (
            r"max_num_batched_tokens \((?P<batched>\d+)\) must be greater than or equal to max_num_seqs "
            r"\((?P<seqs>\d+)\)",
            "max_num_batched_tokens {batched} is below max_num_seqs {seqs}: raise the one or lower the other",
        ),
        (
            r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size "
            r"\((?P<parallel>\d+)\)",
            "tensor_parallel_size {parallel} does not divide the model's {heads} attention heads: choose one that does",
        ),
        (
            r"World size \((?P<wanted>\d+)\) is larger than the number of available GPUs \((?P<there>\d+)\)",
            "{wanted} GPUs are asked for and there are {there}: lower tensor_parallel_size or pipeline_parallel_size",
        ),
        # --- quantization
        (
            r"Cannot find the config file for (?P<method>\w+)",
            "quantization {method} is set and the weights are not quantized with {method}: remove the flag, or name "
            "weights that are",
        ),
        (
            r"Quantization method specified in the model config \((?P<theirs>[\w-]+)\) does not match the "
            r"quantization method specified in the `quantization` argument \((?P<ours>[\w-]+)\)",
            "quantization {ours} is set and the weights are quantized with {theirs}: remove the flag, vLLM finds "
            "{theirs} by itself",
        ),
        (
            r"Unknown quantization method: (?P<method>[\w-]+)",
            "this vLLM has no quantization method '{method}': choose one that it has, or remove the flag",
        ),
        # --- weights
        (
            r"LoRA rank (?P<rank>\d+) is greater than max_lora_rank (?P<most>\d+)",
            "a LoRA adapter has rank {rank} and max_lora_rank is {most}: set max_lora_rank to {rank} or more in the "
            "host's flags",
        ),
        (
            r"Loading lora (?P<name>\S+) failed: No adapter found for (?P<path>\S+)",
            "LoRA adapter '{name}' is not at {path}: mend the weights of that deployment",
        ),
        (
            r"Cannot access gated repo|You are trying to access a gated repo|is a gated repository",
            "the model is gated on the hub: accept its terms there, and give the infer process your HF_TOKEN",
        ),
        (
            r"(?P<revision>\S+) is not a valid git identifier|"
            r"Revision Not Found for url: \S*?/(?:resolve|revision|tree)/(?P<other>[^/\s]+?)\.?(?:[/\s]|$)",
            lambda found: (
                f"the model has no revision '{found['revision'] or found['other']}' on the hub: mend the deployment's "
                "revision"
            ),
        ),
        (
            r"Cannot find an appropriate cached snapshot folder for the specified revision|"
            r"outgoing traffic has been disabled|We couldn't connect to '[^']+' to load",
            "the weights at that revision are not in the local cache and the hub is out of reach or switched off "
            "(HF_HUB_OFFLINE): fetch them first, name a directory as weights, or mend the revision",
        ),
        (
            r"Repo id must (?:be in the form|use alphanumeric)[^:]*: '(?P<name>[^']+)'",
            "weights '{name}' are neither a directory here nor a name on the hub: mend the engine's weights",
        ),
        (
            r"(?:^|\s)(?P<name>\S+) is not a local folder and is not a valid model identifier|"
            r"Repository Not Found for url: https?://[^/]+/(?:api/models/)?(?P<url>[\w.-]+/[\w-]+(?:\.[\w-]+)*)",
            lambda found: (
                f"weights '{found['name'] or found['url']}' are not on the hub, or not for this key: mend the engine's "
                "weights, or give the infer process an HF_TOKEN that may read them"
            ),
        ),
        (
            r"40[13] Client Error",
            "the hub does not let this machine read the weights: mend the engine's weights, or give the infer process "
            "an HF_TOKEN that may read them",
        ),
        (
            r"Invalid repository ID or local directory specified: '(?P<name>[^']+)'",
            "weights '{name}' hold no config.json that vLLM knows: name a directory or a repository of a model",
        ),
        (
            r"Can't load tokenizer for '(?P<name>[^']+)'",
            "there is no tokenizer in '{name}': put its files there, or name another directory as the flag tokenizer",
        ),
        (
            r"Couldn't instantiate the backend tokenizer",
            "the tokenizer's files are missing or cannot be read: put tokenizer.json beside the weights, or name "
            "another directory as the flag tokenizer",
        ),
        (
            r"Model architecture (?P<name>\S+) was supported in vLLM until v(?P<until>[\d.]*\d)",
            "this vLLM no longer runs models of the architecture {name}: install vLLM {until}, the last that did, or "
            "choose another model",
        ),
        (
            r"Model architectures (?P<names>\[.*?\]) are not supported for now|"
            r"Model architecture (?P<name>\S+) is not supported",
            lambda found: (
                f"this vLLM cannot run models of the architecture {(found['names'] or found['name']).strip('[]')}: "
                "install a vLLM that can, or choose another model"
            ),
        ),
        (
            r"Failed to load the tokenizer\..*?trust_remote_code=True",
            "vLLM cannot load the tokenizer: if it brings code of its own, read it, and then set trust_remote_code: "
            "true in the engine's flags; if it was made for newer transformers, upgrade them in vLLM's environment",
        ),
        (
            r"trust_remote_code=True",
            "the model brings code of its own: read it, and then set trust_remote_code: true in the engine's flags",
        ),
        (
            r"default chat template is no longer allowed",
            "the tokenizer has no chat template: put chat_template.jinja beside the weights, or name a template as the "
            "flag chat_template",
        ),
        (
            r"the supplied chat template path doesn't exist|"
            r"The supplied chat template \((?P<path>.+?)\) looks like a file path, but it failed to be opened",
            "the flag chat_template names a file that is not there: mend its path",
        ),
        # --- the machine
        (
            r"\[Errno 98\]|[Aa]ddress already in use",
            "the port that was chosen for it was taken meanwhile: the next start chooses another",
        ),
        (
            r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver",
            "vLLM finds no GPU: look whether nvidia-smi shows one here, or install vLLM's build for CPUs",
        ),
        (
            r"No space left on device: '(?:/dev/shm|/psm_)|shared memory[^\n]*No space left on device|"
            r"Insufficient space in /dev/shm",
            "the shared memory (/dev/shm) is full: give the container more of it (Docker: --shm-size, or --ipc=host)",
        ),
        (r"No space left on device", "the disk is full: make room, or let download_dir name another"),
        # --- flags
        (
            r"error: unrecognized arguments: (?P<names>.+?)(?:\n|$)",
            "this vLLM does not know {names}: mend the engine's flags",
        ),
        (
            r"error: argument (?P<name>\S+): (?P<what>.+?)(?:\n|$)",
            "vLLM refuses {name}: {what}; mend it in the engine's flags",
        ),
        (
            r"validation errors? for \w+\n(?P<field>[\w.]+)\n\s+(?P<what>[^\n]+?) "
            r"\[type=\w+, input_value=(?P<was>.+?), input_type",
            _refused,
        ),
        (
            r"validation errors? for \w+\n\s+Value error, (?P<what>.+?) \[type=value_error",
            "vLLM refuses the configuration: {what}",
        ),
    )
)


def cause(lines: Iterable[str], exit_code: int | None) -> str:
    """One sentence. `exit_code` is negative for a signal, None for a server that still runs."""
    lines = list(lines)
    said = [text for line in lines if (text := _said(line)) is not None]
    if (known := _known(said)) is not None:
        on_cpu = any(_ON_CPU.search(line) for line in lines)
        return _short(known.replace(_MORE_CACHE, _MORE_CACHE_ON_CPU) if on_cpu else known)
    if exit_code is None:
        said = [found["said"] for line in lines if (found := _PREFIX.match(line))]
    elif exit_code < 0:
        return _killed(-exit_code)
    errors = [found for line in said if (found := _ERROR.match(line)) and not found[2].startswith(_SECOND_HAND)]
    if errors and exit_code is not None:
        return _short(f"{errors[-1][1]}: {errors[-1][2]}")
    last = next((line.strip() for line in reversed(said) if line.strip()), "nothing")
    ended = "" if exit_code is None else f"it ended with code {exit_code}; "
    return _short(f"{ended}the last it said: {last}")


def _known(said: list[str]) -> str | None:
    for at, line in enumerate(said):
        if not line:
            continue
        window = "\n".join(said[at : at + _WINDOW])
        for pattern, say in _CAUSES:
            if (found := pattern.search(window)) is not None:
                return say(found) if callable(say) else say.format(**found.groupdict())
    return None


def _said(line: str) -> str | None:
    """The line without the logger's beginning; None for one that tells of no fault."""
    found = _PREFIX.match(line)
    if found is None or found["level"] in _HARMLESS:
        return None
    return found["said"]


def _killed(number: int) -> str:
    if number == signal.SIGKILL:
        return (
            "it was killed (SIGKILL), most likely by the kernel for want of memory: look into dmesg, and give it more "
            "memory or a smaller model"
        )
    name = signal.Signals(number).name if number in {s.value for s in signal.Signals} else f"signal {number}"
    return f"it was ended by {name} before it answered: look at its last lines in this log"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
