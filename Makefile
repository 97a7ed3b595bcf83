# Needs python3 (>= 3.10, with venv and headers), g++ and make. Everything else goes into $(VENV).

TORCH  ?= torch==2.14.1
PYTHON ?= python3
VENV   ?= .venv

BIN    := $(abspath $(VENV))/bin
LIB    := labelsmooth/_C.abi3.so
CSRC   := $(shell find csrc -type f)
FORMAT  = find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh'

export PATH := $(BIN):$(PATH)

.PHONY: help build bench test ctest lint tidy format sanitize wheel clean

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

$(VENV)/torch.stamp: Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" "setuptools>=77" ninja
	touch $@

$(LIB): $(VENV)/torch.stamp setup.py pyproject.toml $(CSRC)
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[dev]'
	touch $@

build: $(LIB)  ## build in place: the package and all that its tests need, in .venv

bench: build  ## benchmark the loss, then train the example with and without it
	$(BIN)/python -m benchmarks loss
	$(BIN)/python examples/train_large_vocab.py

test: export LABELSMOOTH_WERROR := 1
test: lint ctest  ## lint, then the C++ and the Python tests
	$(BIN)/python -m pytest -n 2

ctest: build  ## the C++ tests, and the module through which Python tests call the kernels
	cmake --preset default -DPython_EXECUTABLE=$(BIN)/python
	cmake --build --preset default
	ctest --preset default

lint: build  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(FORMAT) | xargs $(BIN)/clang-format --dry-run --Werror

tidy: ctest  ## clang-tidy on the kernels, with the flags of the C++ tests' build
	$(BIN)/clang-tidy --quiet -p build/cmake/default csrc/cpu/*.cpp

format:  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(FORMAT) | xargs $(BIN)/clang-format -i

sanitize: build  ## the C++ tests under the address, undefined-behaviour and thread sanitizers
	for preset in asan tsan; do \
	  cmake --preset $$preset && cmake --build --preset $$preset && ctest --preset $$preset || exit; \
	done

wheel: build  ## source distribution and, from it, the wheel, in dist/
	$(BIN)/python -m build --no-isolation

clean:  ## remove all that was built; .venv stays
	rm -rf build dist *.egg-info labelsmooth/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
