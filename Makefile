# Every target does its own set-up; Python 3.11 or newer and make are all that must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SUITE ?= suites/quickstart.yaml
EXTRAS ?= train,parakeet,ray,dev

.PHONY: install demo test lint bench chaos fuzz constraints clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "harness needs Python 3.11 or newer; set PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $(STAMP)

# The main job: prepare, fine-tune, export, score, rank, promote.
demo: $(STAMP)
	$(BIN)/harness run $(SUITE)
	$(BIN)/harness board $(SUITE)
	$(BIN)/harness promote $(SUITE) --to results/quickstart/mimir

# Tests of one file run one after the other, files side by side.
TEST_JOBS ?= 2
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Speed, memory and parity targets, measured on this machine; needs a finished demo. The figures stay in results/.
bench: $(STAMP)
	$(BIN)/python -m pytest tests/benchmarks --benchmark-enable --benchmark-only -s \
		--benchmark-json=results/benchmarks/benchmarks.json

# 10,000 damaged inputs through every reader; the summary is results/chaos/fuzz.json.
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --count 10000

# Faults on purpose: full and damaged disks, signals, clocks, MLflow away, then kills in every stage; hours with 200.
KILLS ?= 200
chaos: $(STAMP)
	HARNESS_CHAOS=1 $(BIN)/python -m pytest tests/chaos
	$(BIN)/python -m tests.chaos --kills $(KILLS)

# Renews the resolution of all extras for every system and Python that the project runs on.
constraints: $(STAMP)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
		--no-header --no-annotate --output-file constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info
