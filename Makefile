# Two commands do everything on a fresh machine with Python 3.11 or 3.12: `make run` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

PARALLEL := -n 2 --dist loadscope --no-loadscope-reorder

PEERS := sglang sglang-17a57fd86 vllm ray

.PHONY: run test test-fast test-slow test-sglang docs check format clean peers

run: $(VENV)/installed
	$(BIN)/coatcheck serve $(ARGS)

# All but "slow": in two processes of pytest-xdist what may run beside other tests, then what may not.
test: check
	$(BIN)/pytest -m 'not slow and not serial' $(PARALLEL)
	$(BIN)/pytest -m 'not slow and serial'

# Without what starts ranks, workers, servers or commands.
test-fast: $(VENV)/installed
	$(BIN)/pytest -m 'not slow and not serial and not processes' $(PARALLEL)

# What takes long.
test-slow: $(VENV)/installed
	$(BIN)/pytest -m slow

# With real SGLang servers on the CPU, in an environment of 3 GB; see tests/sglang/README.md.
test-sglang: $(VENV)/installed .peers/sglang/coatcheck
	$(BIN)/pytest tests/sglang

# The documentation as a site, in build/site; a broken link or a page without a place in the navigation is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# All checks but the tests.
check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: pyproject.toml default_model/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "coatcheck needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet -e ./default_model -e '.[bench]' --group test --group docs
	touch $@

# What 'python -m benchmarks.handoff' compares with: an environment for each peer, 10 GB together; see peers/README.md.
peers: $(PEERS:%=.peers/%/installed)

.peers/%/installed: peers/%.txt peers/install.sh
	peers/install.sh $* $(PYTHON)
	touch $@

# SGLang finds plugins by their entry points, and an editable install has those of the day it was made.
.peers/sglang/coatcheck: .peers/sglang/installed pyproject.toml
	.peers/sglang/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
