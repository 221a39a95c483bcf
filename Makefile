# The commands of docs/reference/commands.md. Each works in a fresh clone and sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-scale lint fmt bench lock clean

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

# A fleet of processes is a machine's worth by itself, so those tests come one by one.
test: setup lint
	@$(BIN)/python -m pytest -q -n 3 --dist loadscope tests/unit tests/conformance tests/integration
	@$(BIN)/python -m pytest -q tests/acceptance

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

# No registry's address is written: only names, versions and hashes. The image's lock is the runtime's part of the first.
LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-header -q
lock:
	@$(LOCK) --extra local --extra dev -o requirements.lock
	@$(LOCK) -c requirements.lock -o requirements-runtime.lock

clean:
	@rm -rf $(VENV) build
