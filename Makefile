# `make help` lists what there is to do; see CONTRIBUTING.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.train
# UV=1 installs with uv, which is faster but does not read pip's configuration.
INSTALL = $(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check)
BUILT := $(VENV)/.built
# What was built lists its objects, so that a deleted one is noticed; without a compiler it is empty.
OBJECTS := $(wildcard kernels/*.so)
DELETED := $(filter-out $(OBJECTS),$(shell cat $(BUILT) 2>/dev/null))
# Versions of Triton beside the installed one for which `make aot` compiles.
TRITONS := 3.6 3.7 3.8

.PHONY: help setup build train test bench docs lint gpu-check aot sanitize wheel-check clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@echo "Usage: make TARGET [ARGS='flags of the command'] [PYTHON=python3.12]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) \
	  | while IFS='|' read -r name what; do printf '  %-12s %s\n' "$$name" "$$what"; done

setup: $(BUILT) $(VENV)/.test $(VENV)/.lint $(VENV)/.docs  ## install everything into .venv and build the C++ kernels

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: Python 3.11 or newer is needed; choose one with make PYTHON=python3.12" >&2; exit 2; }
	@echo "make: installing ivcl_fast and what training needs into $(VENV); this takes some minutes"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) 'setuptools>=77' -e .
	@touch $@

$(VENV)/.%: $(STAMP)  # an extra of pyproject.toml: test, lint or docs
	$(INSTALL) -e '.[$*]'
	@touch $@

build: $(BUILT)  ## build the C++ kernels in place; without a compiler it says so and goes on

$(BUILT): $(STAMP) setup.py kernels/_objects.py csrc $(wildcard csrc/*.cpp csrc/*.h) $(DELETED)
	@echo "make: building the C++ kernels; this takes some minutes"
	$(BIN)/python setup.py --quiet build_ext --inplace
	@ls kernels/*.so > $@ 2>/dev/null || true

$(DELETED):  # made anew by the rule above

train: $(BUILT)  ## pretrain, finetune and evaluate on synthetic videos; ARGS=--quick: one minute
	$(BIN)/python -m ivcl_fast.train --compile --config examples/cater_tiny.json $(ARGS)

test: $(BUILT) $(VENV)/.test  ## run the tests; ARGS=tests/kernels: some of them
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

bench: $(BUILT) $(VENV)/.test  ## run the benchmarks
	$(BIN)/python -m pytest benchmarks/ --benchmark-only $(ARGS)

docs: $(VENV)/.docs  ## build the documentation into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet $(ARGS)

lint: $(VENV)/.lint $(VENV)/.test  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Needs no set-up: torch, Triton and some small packages, which it names, are enough.
# PYTHON=... names another interpreter than .venv's.
gpu-check:  ## compare and time everything on an NVIDIA GPU in 25 minutes; ARGS='--minutes 9': less of it
	@$(if $(filter file,$(origin PYTHON)),$(firstword $(wildcard $(BIN)/python) $(PYTHON)),$(PYTHON)) \
	  -m benchmarks.gpu_check $(ARGS)

.triton/%/triton: | $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps \
	  --target $(dir $@) 'triton==$*.*'

# Two versions of Triton cannot live in one environment, so each one is a folder of its own.
aot: $(STAMP) $(TRITONS:%=.triton/%/triton)  ## compile the Triton kernels for eight GPUs, without a GPU
	@for triton in "" $(TRITONS:%=.triton/%); do \
	  PYTHONPATH=$$triton $(BIN)/python -m benchmarks.aot $(ARGS) || failed=1; done; [ -z "$$failed" ]

sanitize: $(VENV)/.test  ## run the op tests on kernels built with AddressSanitizer and UBSan
	.ci/sanitize $(BIN)/python $(ARGS)

wheel-check: $(STAMP)  ## install the wheel in an empty environment and train there
	.ci/wheel-check $(BIN)/python

clean:  ## delete .venv and everything that was built
	rm -rf $(VENV) .triton build dist *.egg-info kernels/*.so
