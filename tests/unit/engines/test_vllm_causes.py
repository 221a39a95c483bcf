"""Each known way of vLLM not to start gives one sentence, with the log's figures and what to do."""

import signal

import pytest

from tieryard.engines.vllm_causes import cause

API = "(APIServer pid=27700) INFO 11-22 20:37:45 [model.py:2152] Using max model len 2048"
CORE = "(EngineCore pid=27619) ERROR 11-22 20:37:34 [core.py:1510] "
WORKER = "(Worker_TP0 pid=27891) ERROR 11-22 20:38:43 [multiproc_executor.py:1063] "
AFTERMATH = [
    "Process EngineCore:",
    "Traceback (most recent call last):",
    "RuntimeError: Worker failed with error 'as above', please check the stack trace above for the root cause",
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}",
    "/usr/lib/python3.11/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1",
]

# (lines of a log, parts of the sentence). Those marked "seen" are from real starts; the others are worded as in the
# sources of vLLM 0.32, transformers 5, huggingface_hub 1 and PyTorch 2.13.
CASES = {
    "awq on plain weights (seen)": (
        [
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig",
            "  Value error, Cannot find the config file for awq [type=value_error, input_value=ArgsKwargs(())]",
        ],
        ["quantization awq is set", "not quantized with awq", "remove the flag"],
    ),
    "another quantization": (
        [
            "ValueError: Quantization method specified in the model config (gptq) does not match the quantization "
            "method specified in the `quantization` argument (awq)."
        ],
        ["quantization awq is set", "quantized with gptq", "remove the flag"],
    ),
    "no such quantization": (
        ["ValueError: Unknown quantization method: awk. Must be one of ['awq', 'fp8']."],
        ["no quantization method 'awk'"],
    ),
    "too few tokens a step (seen)": (
        [
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for SchedulerConfig",
            "  Value error, max_num_batched_tokens (512) is smaller than max_model_len (2048). This effectively limits",
        ],
        ["max_num_batched_tokens 512 is below max_model_len 2048", "enable_chunked_prefill: true"],
    ),
    "fewer tokens a step than requests": (
        ["ValueError: max_num_batched_tokens (64) must be greater than or equal to max_num_seqs (256)."],
        ["max_num_batched_tokens 64 is below max_num_seqs 256"],
    ),
    "longer than the model (seen)": (
        [
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
            "  Value error, User-specified max_model_len (16384) is greater than the derived max_model_len "
            "(max_position_embeddings=8192.0 or model_max_length=None in model's config.json). To allow overriding",
        ],
        ["max_model_len 16384", "the model's own 8192", "lower max_model_len and context_limit"],
    ),
    "no memory for the KV cache (seen)": (
        [CORE + "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when"],
        ["no memory for the KV cache", "raise gpu_memory_utilization"],
    ),
    "a KV cache beyond the memory (seen)": (
        [
            WORKER + "ValueError: Available memory on node 0 (8.03/9.96 GiB) on kv cache allocation is less than "
            "requested memory for kv (500.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce"
        ],
        ["500.0 GiB", "8.03 of 9.96 GiB are free", "lower VLLM_CPU_KVCACHE_SPACE"],
    ),
    "a KV cache too small for one request": (
        [
            CORE
            + "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache "
            "is needed, which is larger than the available KV cache memory (9.53 GiB). Based on the available memory, "
            "the estimated maximum model length is 78064. Try increasing `gpu_memory_utilization`"
        ],
        ["max_model_len 131072 needs 16.0 GiB", "there are 9.53 GiB", "at most 78064 would fit", "lower max_model_len"],
    ),
    "a KV cache too small for anything": (
        [
            "ValueError: To serve at least one request with the models's max seq len (8192), (4.0 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (0.01 GiB). Try increasing"
        ],
        ["max_model_len 8192 needs 4.0 GiB", "there are 0.01 GiB: lower"],
    ),
    "out of memory": (
        [
            CORE + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total capacity "
            "of 79.10 GiB of which 1.25 GiB is free. Process 1 has 77.8 GiB memory in use."
        ],
        ["out of memory", "2.32 GiB more", "1.25 GiB of 79.10 GiB were free", "tensor_parallel_size"],
    ),
    "out of memory while it warms up": (
        [
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try "
            "lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine."
        ],
        ["the GPU is out of memory: if the weights fit, lower gpu_memory_utilization or max_num_seqs"],
    ),
    "a GPU in use": (
        [
            WORKER + "ValueError: Free memory on device cuda:0 (12.4/79.1 GiB) on startup is less than desired GPU "
            "memory utilization (0.9, 71.19 GiB). Decrease GPU memory utilization or reduce GPU memory used by other"
        ],
        ["gpu_memory_utilization 0.9 means 71.19 GiB", "12.4 of 79.1 GiB are free", "lower it"],
    ),
    "a CPU in use": (
        [
            WORKER + "ValueError: Available memory on node 0 (3.1/9.96 GiB) on startup is less than desired CPU memory "
            "utilization (0.92, 9.16 GiB). On the CPU backend"
        ],
        ["9.16 GiB would be taken", "3.1 of 9.96 GiB", "set VLLM_CPU_KVCACHE_SPACE"],
    ),
    "heads and GPUs (seen)": (
        [
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig",
            "  Value error, Total number of attention heads (9) must be divisible by tensor parallel size (4). [type=",
        ],
        ["tensor_parallel_size 4 does not divide the model's 9 attention heads"],
    ),
    "too few GPUs": (
        [
            "  Value error, World size (8) is larger than the number of available GPUs (2) in this node. If this is "
            "intentional and you are using:"
        ],
        ["8 GPUs are asked for and there are 2", "lower tensor_parallel_size"],
    ),
    "no revision offline (seen)": (
        [
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for the "
            "specified revision on the local disk and outgoing traffic has been disabled. To enable repo look-ups"
        ],
        ["not in the local cache", "HF_HUB_OFFLINE", "mend the revision"],
    ),
    "no revision on the hub": (
        [
            "OSError: deadbeef is not a valid git identifier (branch name, tag name or commit id) that exists for this "
            "model name."
        ],
        ["no revision 'deadbeef'", "mend the deployment's revision"],
    ),
    "no revision, in the hub's words": (
        [
            "huggingface_hub.errors.RevisionNotFoundError: 404 Client Error. (Request ID: Root=1)",
            "",
            "Revision Not Found for url: https://huggingface.co/api/models/org/model/revision/deadbeef.",
        ],
        ["no revision 'deadbeef'"],
    ),
    "gated": (
        [
            "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1)",
            "",
            "Cannot access gated repo for url https://huggingface.co/org/model/resolve/main/config.json.",
        ],
        ["gated", "accept its terms", "HF_TOKEN"],
    ),
    "no such repository": (
        [
            "OSError: org/modl is not a local folder and is not a valid model identifier listed on 'https://hf.co/models'"
        ],
        ["weights 'org/modl' are not on the hub", "mend the engine's weights"],
    ),
    "no such repository, in the hub's words": (
        [
            "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1)",
            "",
            "Repository Not Found for url: https://huggingface.co/api/models/org/modl-1.5/revision/main.",
        ],
        ["weights 'org/modl-1.5' are not on the hub"],
    ),
    "a key that may not": (
        ["requests.exceptions.HTTPError: 403 Client Error: Forbidden for url: https://huggingface.co/org/model"],
        ["does not let this machine read", "HF_TOKEN"],
    ),
    "no such directory (seen)": (
        [
            "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or "
            "'namespace/repo_name': '/nowhere/at/all'. Use `repo_type` argument if needed."
        ],
        ["weights '/nowhere/at/all' are neither a directory"],
    ),
    "no model in the directory": (
        ["  Value error, Invalid repository ID or local directory specified: '/empty'."],
        ["weights '/empty' hold no config.json"],
    ),
    "no tokenizer": (
        [
            "OSError: Can't load tokenizer for '/weights'. If you were trying to load it from 'https://huggingface.co/mod"
        ],
        ["no tokenizer in '/weights'", "the flag tokenizer"],
    ),
    "a tokenizer in pieces": (
        ["ValueError: Couldn't instantiate the backend tokenizer from one of: ", "(1) a `tokenizers` library"],
        ["put tokenizer.json beside the weights"],
    ),
    "an unknown architecture": (
        [
            "  Value error, Model architectures ['NewForCausalLM'] are not supported for now. Supported architectures: "
            "dict_keys(['A'])"
        ],
        ["architecture 'NewForCausalLM'", "install a vLLM that can"],
    ),
    "an architecture of old": (
        ["ValueError: Model architecture OldModel was supported in vLLM until v0.9, and is not supported anymore."],
        ["no longer runs", "architecture OldModel", "install vLLM 0.9, the last that did"],
    ),
    "a tokenizer of another kind": (
        [
            "RuntimeError: Failed to load the tokenizer. If the tokenizer is a custom tokenizer not yet available in "
            "the HuggingFace transformers library, consider setting `trust_remote_code=True` in LLM or using the "
            "`--trust-remote-code` flag in the CLI. If the model was created with a newer version of transformers, "
            "consider upgrading: `uv pip install --upgrade transformers`"
        ],
        ["cannot load the tokenizer", "set trust_remote_code: true", "upgrade"],
    ),
    "code of the model's own": (
        ["ValueError: Please pass the argument `trust_remote_code=True` to allow custom code to be run."],
        ["code of its own", "trust_remote_code: true"],
    ),
    "no chat template": (
        [
            "ValueError: As of transformers v4.44, default chat template is no longer allowed, so you must provide "
            "a chat template if the tokenizer does not define one."
        ],
        ["no chat template", "the flag chat_template"],
    ),
    "a chat template that is not there": (
        ["ValueError: The supplied chat template (/t.jinja) looks like a file path, but it failed to be opened. Tried"],
        ["chat_template names a file that is not there"],
    ),
    "a port in use (seen)": (["OSError: [Errno 98] Address already in use"], ["taken meanwhile", "chooses another"]),
    "no GPU": (
        ["RuntimeError: Failed to infer device type, please set the environment variable"],
        ["finds no GPU", "nvidia-smi"],
    ),
    "a full disk": (["OSError: [Errno 28] No space left on device: '/cache/model'"], ["the disk is full"]),
    "full shared memory": (
        [WORKER + "OSError: [Errno 28] No space left on device: '/dev/shm/sem.x'"],
        ["shared memory (/dev/shm) is full", "--shm-size"],
    ),
    "full shared memory, in PyTorch's words": (
        ["RuntimeError: unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"],
        ["shared memory (/dev/shm) is full"],
    ),
    "too little shared memory": (
        ["RuntimeError: Insufficient space in /dev/shm for a ring buffer: 161 MiB required, 64 MiB free. Increase it"],
        ["shared memory (/dev/shm) is full"],
    ),
    "an unknown flag (seen)": (
        ["usage: vllm serve [model_tag] [options]", "vllm: error: unrecognized arguments: --max-modl-len"],
        ["does not know --max-modl-len", "mend the engine's flags"],
    ),
    "a choice that is none": (
        ["vllm: error: argument --max-lora-rank: invalid choice: 17 (choose from 1, 8, 16)"],
        ["refuses --max-lora-rank: invalid choice: 17 (choose from 1, 8, 16)"],
    ),
    "a value out of range (seen)": (
        [
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig",
            "gpu_memory_utilization",
            "  Input should be less than or equal to 1 [type=less_than_equal, input_value=1.5, input_type=float]",
        ],
        ["refuses gpu_memory_utilization: input should be less than or equal to 1 (it was 1.5)"],
    ),
    "a configuration that cannot be": (
        [
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig",
            "  Value error, This and that exclude each other. [type=value_error, input_value=ArgsKwargs(())]",
        ],
        ["vLLM refuses the configuration: This and that exclude each other."],
    ),
    "an adapter that is not there": (
        ["ValueError: Loading lora legal failed: No adapter found for /adapters/legal"],
        ["LoRA adapter 'legal' is not at /adapters/legal", "mend the weights"],
    ),
    "an adapter of too high a rank": (
        [WORKER + "ValueError: LoRA rank 64 is greater than max_lora_rank 16."],
        ["rank 64 and max_lora_rank is 16", "set max_lora_rank to 64 or more"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_known_failure_is_told_with_its_figures_and_its_remedy(name):
    lines, parts = CASES[name]
    said = cause([API, "Traceback (most recent call last):", *lines, *AFTERMATH], 1)
    assert [part for part in parts if part not in said] == [], said
    assert "\n" not in said
    assert len(said) < 300  # events are cut there


@pytest.mark.parametrize("name", ["no memory for the KV cache (seen)", "a KV cache too small for one request"])
@pytest.mark.parametrize(
    "line",
    [
        "(EngineCore pid=1) INFO 11-22 20:35:45 [core.py:133] Initializing: dtype=auto, device_config=cpu, seed=0",
        "(Worker pid=2) INFO 11-22 20:35:57 [cpu_worker.py:260] Explicitly set (0.0/9.96) GiB for KV cache on node 0.",
    ],
)
def test_on_a_cpu_the_remedy_is_that_builds_own(name, line):
    said = cause([line, *CASES[name][0], *AFTERMATH], 1)
    assert "raise VLLM_CPU_KVCACHE_SPACE" in said
    assert "gpu_memory_utilization" not in said


def test_the_first_cause_in_the_log_is_told_not_what_followed():
    first, second = CASES["out of memory"][0], CASES["a port in use (seen)"][0]
    assert "out of memory" in cause([*first, *AFTERMATH, *second], 1)
    assert "port" in cause([*second, *AFTERMATH, *first], 1)


def test_what_is_only_told_or_warned_of_is_no_cause():
    line = "(APIServer pid=1) WARNING 11-22 20:35:29 [x.py:1] CUDA out of memory is near; Address already in use"
    assert cause([line, line.replace("WARNING", "INFO"), "ValueError: of another kind"], 1) == (
        "ValueError: of another kind"
    )


def test_an_unknown_failure_is_told_in_vllms_own_last_words():
    lines = [API, CORE + "vllm.errors.OddError: the moon is full", *AFTERMATH]
    assert cause(lines, 1) == "OddError: the moon is full"
    assert cause(["no error at all", ""], 3) == "it ended with code 3; the last it said: no error at all"
    assert len(cause(["ValueError: " + "x" * 5000], 1)) == 400


@pytest.mark.parametrize(
    ("sign", "said"), [(signal.SIGKILL, "for want of memory"), (signal.SIGSEGV, "ended by SIGSEGV"), (99, "signal 99")]
)
def test_a_signal_is_named_where_the_log_gives_no_cause(sign, said):
    assert said in cause([API, "RuntimeError: odd"], -sign)
    assert "port" in cause(CASES["a port in use (seen)"][0], -sign)


def test_a_server_that_still_starts_gives_its_last_words():
    assert cause(["ValueError: was handled", API], None) == "the last it said: Using max model len 2048"
