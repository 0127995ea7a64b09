# `make train` sets everything up and runs the main job; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BUILT := $(VENV)/.built

.PHONY: setup build train test soak bench gpu-check aot lint sanitize wheel-check clean

setup: $(BUILT)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: Python 3.11 or newer is needed; choose one with make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev,dali]'
	@touch $@

# The C++ kernels, in place; without a compiler it says so and goes on.
build: $(BUILT)

$(BUILT): $(STAMP) setup.py kernels/_objects.py csrc $(wildcard csrc/*.cpp csrc/*.h)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

train: $(BUILT)
	$(BIN)/python -m ivcl_fast.train --compile $(ARGS)

test: $(BUILT)
	$(BIN)/python -m pytest $(ARGS)

# Kills, rank deaths and damaged checkpoints, many times over; ends within half an hour.
soak: $(BUILT)
	$(BIN)/python -m tests.support.soak $(ARGS)

bench: $(BUILT)
	$(BIN)/python -m pytest benchmarks/ --benchmark-only $(ARGS)

# Needs no set-up: torch, Triton and some small packages, which it names, are enough.
# PYTHON=... names another interpreter than .venv's.
gpu-check:
	@$(if $(filter file,$(origin PYTHON)),$(firstword $(wildcard $(BIN)/python) $(PYTHON)),$(PYTHON)) \
	  -m benchmarks.gpu_check $(ARGS)

aot: $(STAMP)
	$(BIN)/python -m ivcl_fast.kernels.aot $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The op tests on C++ kernels built with AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(STAMP)
	.ci/sanitize $(BIN)/python $(ARGS)

# A wheel, installed in an empty environment elsewhere, trains.
wheel-check: $(STAMP)
	.ci/wheel-check $(BIN)/python

clean:
	rm -rf $(VENV) build dist *.egg-info kernels/*.so
