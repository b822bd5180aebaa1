# make train          install the project and train on Breakout
# make test           install the project and run the tests
# make crash-test     an hour and a half of kills, disk errors and damage; writes docs/reliability-results.md
# make operate-test   kill each process of `make serve`; takes half an hour
# make cluster-test   kill servers and workers of a cluster; takes half an hour and needs PostgreSQL
# make fuzz           read 109,200 changed files, variables and tags; takes an hour
# make bench          measure the speed on this machine; writes docs/performance.md
# make reproduce      compare every published table with its raw results, and play the evaluation of each agent again
# make check          formatting, lint, types and directions of imports
# make serve          a Prefect server, an MLflow server and a worker, until Ctrl-C
# make ui             the MLflow UI for the runs
# make lock           pin the newest versions that pyproject.toml allows

SHELL := bash -o pipefail
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
ARGS ?=
FIGURES := $(CURDIR)/build/figures

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: train test operate-test cluster-test crash-test fuzz crash-kills crash-failures crash-overlap bench reproduce check serve ui lock clean

train: $(READY)
	$(BIN)/dqn train $(ARGS)

# Two processes, because many tests wait for a server to start.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

operate-test: $(READY)
	$(BIN)/python -m pytest -m operate --timeout 1200 $(ARGS)

cluster-test: $(READY)
	$(BIN)/python -m pytest -m cluster --timeout 1200 $(ARGS)

# Two processes at a time, because each test keeps one core busy; benchmarks.reliability writes the table.
crash-test: $(READY)
	rm -rf $(FIGURES) && mkdir -p $(FIGURES)
	$(MAKE) --jobs 2 --keep-going crash-kills crash-failures crash-overlap
	$(BIN)/python -m benchmarks.reliability $(FIGURES)

crash-kills crash-failures crash-overlap: export FIGURES := $(FIGURES)
crash-kills crash-failures crash-overlap: export PYTEST_ADDOPTS := -m "not operate and not cluster"
crash-kills: $(READY)
	CRASH_KILLS=200 CRASH_OPERATIONS=0 CRASH_REPEATS=20 CRASH_RESUMES=5 CORRUPTIONS=1000 RACES=50 S3_FAULTS=0 \
		CRASH_TRIALS=5 $(BIN)/python -m pytest tests/crash tests/storage tests/integration/test_sweep_flow.py \
		--ignore tests/crash/test_failures.py --timeout 86400 $(ARGS)
crash-failures: $(READY)
	CRASH_OPERATIONS=0 CRASH_SIZES=50 $(BIN)/python -m pytest tests/crash/test_failures.py --timeout 86400 $(ARGS)
crash-overlap: $(READY)
	CRASH_OVERLAP=yes CRASH_KILLS=50 CRASH_OPERATIONS=50 CRASH_REPEATS=5 CORRUPTIONS=200 RACES=5 \
		$(BIN)/python -m pytest tests/crash/test_kills.py tests/crash/test_damage.py --timeout 86400 $(ARGS)

fuzz: $(READY)
	FUZZ_INPUTS=12000 $(BIN)/python -m pytest tests/fuzz --numprocesses 2 $(ARGS)

bench: $(READY)
	$(BIN)/python -m benchmarks

reproduce: $(READY)
	$(BIN)/python -m benchmarks.reproduce

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

serve: $(READY)
	$(BIN)/dqn serve

ui: $(READY)
	$(BIN)/dqn ui $(ARGS)

# The lock is a constraint, too, because pip would else try the newest release of each package that another one asks for
# with an extra. Python compiles a module when it is first imported.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dqn needs Python 3.11 or newer; set PYTHON=")'
	@echo "installing the $$(grep -c == requirements.lock) packages of requirements.lock into .venv; files from 1 MB on are named:"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --progress-bar off --no-compile \
		--requirement requirements.lock --constraint requirements.lock 2>&1 \
		| awk '/Downloading .*MB|^Installing|ERROR/ { print substr($$0, 1, 110); fflush() }'
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# torch is pinned without the local part of its version, so that both the CPU and the CUDA build match.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --upgrade pip setuptools
	.venv-lock/bin/pip install --quiet --group dev --editable . torch==2.13.0
	.venv-lock/bin/pip freeze --exclude-editable --all --exclude pip | sed 's/^\(torch==[^+]*\)+.*/\1/' > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf .venv .venv-lock build *.egg-info
