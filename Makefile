# make demo and make test need Python 3.11+ and make; each creates .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCE ?=
# Options of bench.speed, for instance make bench BENCH="--texts texts.jsonl --avx2"
BENCH ?=
# PyTorch's CPU build, where the package index in use offers one as 2.13.0+cpu; elsewhere say
# make test TORCH_INDEX="--index-url https://download.pytorch.org/whl/cpu"
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
AXE := $(VENV)/browser/node_modules/axe-core/axe.min.js
APT := $(if $(filter 0,$(shell id -u)),,sudo )apt-get

.PHONY: demo test test-slow check browser bench lock clean

demo: $(VENV)/demo.stamp
	$(BIN)/vecferry demo $(if $(SOURCE),--source "$(SOURCE)")

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What the tests in tests/browser want beside Python, on Debian: Chromium, letters for every text of the demo, axe-core.
browser: $(AXE)
	command -v chromium || { $(APT) update -qq && \
	    $(APT) install -qq -y --no-install-recommends chromium fonts-dejavu-core fonts-wqy-microhei; }

$(AXE): | $(VENV)/dev.stamp
	command -v npm || { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends npm; }
	npm install --prefix $(VENV)/browser axe-core@4.14.1 --ignore-scripts --no-audit --no-fund --silent
	@touch $@

# In an environment of its own: the peers bring some eighty packages.
bench: .venv-bench/bench.stamp
	.venv-bench/bin/python -m bench.speed --only shapes,latency,memory $(BENCH)
	.venv-bench/bin/python -m bench.speed --only shapes,latency,mix --layers 6 $(BENCH)
	.venv-bench/bin/python -m bench.plot

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(BIN)/python pyproject.toml requirements.lock
	$(PIP) -c requirements.lock -e ".[demo]"
	@touch $@

$(VENV)/dev.stamp: $(BIN)/python pyproject.toml requirements.lock
	$(PIP) $(TORCH_INDEX) torch==2.13.0
	$(PIP) -c requirements.lock -e ".[dev]"
	@touch $@

.venv-bench/bench.stamp: pyproject.toml requirements.lock bench/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH_INDEX) torch==2.13.0
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock \
	    -e ".[torch,eval]" -r bench/requirements.txt
	@touch $@

# Without the CUDA packages that the registry's Linux build of PyTorch names: nothing here installs them.
lock: $(VENV)/dev.stamp
	$(PIP) uv
	echo "torch==2.13.0" | $(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	    --upgrade --quiet --no-header --no-annotate -c - | grep -Ev '^(cuda|nvidia|triton)' > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) .venv-bench bench/work demo .pytest_cache .mypy_cache .ruff_cache
