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
LOCKED := --no-deps --require-hashes --no-compile
SELF := --no-deps --no-build-isolation -e .
COMPILE := .venv-lock/bin/uv pip compile pyproject.toml - --universal --python-version 3.11 --quiet --no-header --no-annotate
FAST := not pgvector and not chroma and not lancedb and not qdrant and not milvus and not sqlite and not faiss
AXE := $(VENV)/browser/node_modules/axe-core/axe.min.js
APT := $(if $(filter 0,$(shell id -u)),,sudo )apt-get
# Of a line of a lock: which file it belongs to.
IN := /^[a-z]/ {file = /^torch==/ ? "torch" : /^(cuda|nvidia|triton)/ ? "cuda" : "dev"} file

# The tests start hundreds of processes, which would compile the same files over and over where this is set.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast test-slow check browser pool clients bench peers docs lock release clean

demo: $(VENV)/demo.stamp
	$(BIN)/vecferry demo $(if $(SOURCE),--source "$(SOURCE)")

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

# The first green answer in a clone: the core, and whole migrations of a collection in memory.
test-fast: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --maxprocesses 4 tests/test_embeddings.py tests/test_batching.py tests/test_encoder.py \
	    tests/stores/test_backends.py tests/migrate/test_states.py tests/migrate/test_migration.py -k "$(FAST)"

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

# What tests/stores/test_pgvector_pool.py wants beside Python, on Debian.
pool:
	test -x /usr/sbin/pgbouncer || { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends pgbouncer; }

# What the slow tests in tests/compatibility want: clients of other packages, in an environment of their own.
clients: .venv-clients/clients.stamp

.venv-clients/clients.stamp: tests/compatibility/requirements.txt tests/compatibility/programs/package.json
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check -r tests/compatibility/requirements.txt
	cp tests/compatibility/programs/package.json .venv-clients/
	npm install --prefix .venv-clients --ignore-scripts --no-audit --no-fund --silent
	@touch $@

$(AXE):
	command -v npm || { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends npm; }
	mkdir -p $(VENV)/browser
	npm install --prefix $(VENV)/browser axe-core@4.14.1 --ignore-scripts --no-audit --no-fund --silent
	@touch $@

# The pages of docs/ as a site, dist/site/index.html, that works from the disk; a link that leads nowhere stops it.
docs: .venv-docs/docs.stamp
	.venv-docs/bin/sphinx-build -q -W --keep-going -b html docs dist/site
	@echo "dist/site/index.html"

.venv-docs/docs.stamp: docs/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

# In an environment of its own: the peers bring some eighty packages.
bench: .venv-bench/bench.stamp
	.venv-bench/bin/python -m bench.speed --only shapes,latency,memory $(BENCH)
	.venv-bench/bin/python -m bench.speed --only shapes,latency,mix --layers 6 $(BENCH)
	.venv-bench/bin/python -m bench.plot

# What users would take instead, on the same weights: OpenVINO, llama.cpp, bge-m3-lite.
peers: .venv-bench/peers.stamp
	.venv-bench/bin/python -m bench.speed --only peers --layers 6 $(BENCH)
	.venv-bench/bin/python -m bench.plot

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(BIN)/python pyproject.toml locks/demo.txt
	$(PIP) $(LOCKED) -r locks/demo.txt
	$(PIP) $(SELF)
	@touch $@

# PyTorch and the rest have no file in common: make -j2 installs them side by side.
$(VENV)/torch.stamp: $(BIN)/python locks/torch.txt
	$(PIP) $(TORCH_INDEX) $(LOCKED) -r locks/torch.txt
	@touch $@

$(VENV)/packages.stamp: $(BIN)/python locks/dev.txt
	$(PIP) $(LOCKED) -r locks/dev.txt
	@touch $@

$(VENV)/dev.stamp: pyproject.toml locks/cuda.txt $(VENV)/packages.stamp $(VENV)/torch.stamp
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) $(LOCKED) -r locks/cuda.txt
	$(PIP) $(SELF)
	$(BIN)/python -m pip check
	@touch $@

.venv-bench/bench.stamp: pyproject.toml locks/dev.txt locks/torch.txt locks/cuda.txt bench/requirements.txt
	$(MAKE) VENV=.venv-bench .venv-bench/dev.stamp
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r bench/requirements.txt
	@touch $@

.venv-bench/peers.stamp: .venv-bench/bench.stamp bench/peers.txt
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r bench/peers.txt
	@touch $@

# Each lock is whole (pip resolves nothing) and has the hashes of every file of a version, for every platform. dev.txt
# decides the versions. torch.txt is kept by hand; cuda.txt is what the registry's Linux build of PyTorch loads beside it.
# demo.txt is without PyTorch, which the package of all-MiniLM-L6-v2 asks for and its weights do not need.
lock: .venv-lock/bin/uv
	cat locks/torch.txt locks/build.in | $(COMPILE) --generate-hashes --upgrade --extra dev > locks/all
	awk '$(IN) == "dev"' locks/all > locks/dev.txt
	awk '$(IN) == "cuda"' locks/all > locks/cuda.txt
	$(COMPILE) --generate-hashes --extra demo -c locks/all < locks/build.in > locks/part
	awk '$(IN) == "dev"' locks/part > locks/demo.txt
	$(COMPILE) --generate-hashes --extra server -c locks/all < locks/build.in > locks/server.txt
	$(COMPILE) --extra pgvector,parquet -c locks/all < /dev/null > locks/part
	{ sed '/^#/!d' requirements.txt; cat locks/part; echo ".[pgvector,parquet]"; } > locks/requirements
	mv locks/requirements requirements.txt
	rm locks/all locks/part

.venv-lock/bin/uv:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9

# dist/: a wheel and an sdist, and what a stranger would try with them. It signs and uploads nothing.
release: $(VENV)/dev.stamp
	rm -f dist/vecferry-*
	$(BIN)/python -m hatchling build -t sdist -t wheel -d dist
	$(BIN)/python -m tests.release dist

clean:
	rm -rf $(VENV) .venv-bench .venv-docs .venv-clients .venv-flag .venv-lock bench/work demo .pytest_cache .mypy_cache .ruff_cache
