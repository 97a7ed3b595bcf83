# Needs python3 (>= 3.10, with venv and headers), g++ and make. Everything else goes into $(VENV).

TORCH  ?= torch==2.14.1
PYTHON ?= python3
VENV   ?= .venv
CLANG  ?= clang++
MATRIX ?= $(addprefix $(PYTHON):torch==,2.10.0 2.13.0 2.14.1 2.15.0)

BIN    := $(abspath $(VENV))/bin
LIB    := labelsmooth/_C.abi3.so
CSRC   := $(shell find csrc -type f)
SCHEMA  = $(BIN)/check-jsonschema --quiet --builtin-schema
FORMAT  = find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh'

ifneq ($(VENV),)
  export PATH := $(BIN):$(PATH)
endif

.PHONY: help build bench examples gpu test integrations ctest platforms docs fuzz lint tidy format
.PHONY: sanitize sanitize-short wheel wheel-check wheel-matrix sdist manylinux clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(VENV)/torch.stamp: Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" "setuptools>=77" ninja
	touch $@

$(LIB): $(VENV)/torch.stamp setup.py pyproject.toml $(CSRC)
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[dev]'
	touch $@

build: $(LIB)  ## build in place: the package and all that its tests need, in .venv

# $(call train,NAMES): these examples, the one over ranks by torchrun; pictures are left in build.
LAUNCH_tensor_parallel := -m torch.distributed.run --standalone --nproc-per-node 2
train = mkdir -p build && cd build && \
  $(foreach name,$(1),$(BIN)/python $(LAUNCH_$(name)) ../examples/$(name).py &&) :

bench: build  ## benchmark the loss, alone and with the projection, then run three examples
	$(BIN)/python -m benchmarks loss
	$(BIN)/python -m benchmarks linear --quick
	$(call train,train_large_vocab mixup tensor_parallel)

examples: $(VENV)/trainer.stamp  ## run all examples, in full
	$(call train,gap_figure fused_projection distillation trainer)
	$(call train,train_large_vocab mixup tensor_parallel)

$(VENV)/trainer.stamp: $(LIB)
	$(BIN)/python -m pip install --quiet "$(TORCH)" accelerate transformers
	touch $@

gpu:  ## with a GPU: a verdict in ten minutes; VENV= takes PYTHON as it is, WHEEL=path a wheel
	@nvidia-smi -L || { echo "make gpu: there is no GPU here" >&2; exit 2; }
	$(if $(VENV),$(MAKE) build)
	$(if $(VENV),$(BIN)/python,$(PYTHON)) scripts/verify_gpu.py \
	  $(if $(WHEEL),--wheel $(WHEEL),$(if $(VENV),--built))

test: export LABELSMOOTH_WERROR := 1
test: lint docs platforms pytest  ## lint, build the documentation, run the C++ and the Python tests

pytest: export LABELSMOOTH_WERROR := 1
pytest: ctest  ## of these, the C++ tests by the default compiler and the Python tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

integrations: $(VENV)/integrations.stamp  ## the drop-ins beside the libraries whose losses they replace
	$(BIN)/python -m pytest -n 2 tests/integrations

$(VENV)/integrations.stamp: $(LIB) tests/integrations/no-deps.txt
	$(BIN)/python -m pip install --quiet "$(TORCH)" --no-build-isolation -e '.[integrations]'
	READTHEDOCS=1 $(BIN)/python -m pip install --quiet --no-deps -r tests/integrations/no-deps.txt
	touch $@

ctest: build  ## the C++ tests, and the module through which Python tests call the kernels
	cmake --preset default -DPython_EXECUTABLE=$(BIN)/python \
	  -DLABELSMOOTH_OBJECTS=$(abspath build/inplace/csrc/cpu)
	cmake --build --preset default
	ctest --preset default

platforms: ctest-clang ctest-aarch64 ctest-aarch64-clang  ## by clang, and for aarch64: where found
ctest-clang: NEEDS := clang++
ctest-aarch64: NEEDS := aarch64-linux-gnu-g++ qemu-aarch64
ctest-aarch64-clang: NEEDS := clang++ aarch64-linux-gnu-g++ qemu-aarch64
ctest-%: build
	@if type $(NEEDS) >/dev/null 2>&1; then \
	  cmake --preset $* -DPython_EXECUTABLE=$(BIN)/python && cmake --build --preset $* && \
	  ctest --preset $*; \
	else echo "$@: left out, it needs $(NEEDS)"; fi

docs: build  ## the documentation, in build/docs; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q docs build/docs
	touch build/docs/searchindex.js

fuzz: ctest  ## many more property tests; the kernels' fuzz target, by libFuzzer where CLANG is found
	$(BIN)/python -m pytest -n 2 tests/functional/test_properties.py --hypothesis-profile=long
	if command -v $(CLANG); then \
	  cmake --preset fuzz -DCMAKE_CXX_COMPILER=$(CLANG) && cmake --build --preset fuzz && \
	  mkdir -p build/corpus && \
	  build/cmake/fuzz/fuzz_kernel -max_total_time=600 -max_len=4096 -len_control=0 -print_final_stats=1 \
	    -artifact_prefix=build/ build/corpus; \
	else build/cmake/default/fuzz_kernel 200000; fi

lint: build  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(FORMAT) | xargs $(BIN)/clang-format --dry-run --Werror
	$(SCHEMA)=vendor.github-workflows .github/workflows/*.yml
	$(SCHEMA)=vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(SCHEMA)=vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(SCHEMA)=vendor.dependabot .github/dependabot.yml
	$(SCHEMA)=vendor.citation-file-format CITATION.cff
	$(BIN)/zizmor --offline --quiet --strict-collection .github

tidy: ctest  ## clang-tidy on the kernels, with the flags of the C++ tests' build
	$(BIN)/clang-tidy --quiet -p build/cmake/default csrc/cpu/*.cpp

format:  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(FORMAT) | xargs $(BIN)/clang-format -i

sanitize:  ## the C++ tests under the address, undefined-behaviour and thread sanitizers
sanitize-short:  ## of those, the fuzz target with its fixed inputs
sanitize-short: ONLY := fuzz_kernel
sanitize sanitize-short: build
	for preset in asan tsan; do \
	  cmake --preset $$preset && cmake --build --preset $$preset $(ONLY:%=--target %) && \
	  ctest --preset $$preset $(ONLY:%=-R %) || exit; \
	done

wheel: build  ## source distribution and, from it, the wheel, in dist/; torch's libraries stay out
	rm -rf dist build/wheel
	$(BIN)/python -m build --no-isolation --outdir build/wheel
	$(BIN)/auditwheel repair --exclude 'libtorch*' --wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist
	$(BIN)/twine check --strict dist/*

wheel-check: wheel  ## the wheel by itself, in an environment of its own
	rm -rf build/clean
	$(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip install --quiet "$(TORCH)" dist/*.whl
	build/clean/bin/python -I -m labelsmooth
	build/clean/bin/python -I scripts/smoke.py

wheel-matrix: wheel  ## the wheel's audit and size; the suite with it under each python:torch of MATRIX
	$(BIN)/python scripts/wheel_matrix.py dist $(MATRIX)

sdist: $(VENV)/torch.stamp  ## the source distribution alone, in dist/
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build --no-isolation --sdist
	$(BIN)/twine check --strict dist/*.tar.gz

manylinux:  ## with Docker: the wheel of a release, for this machine's kind of processor, in dist/
	$(PYTHON) -m venv build/cibuildwheel
	build/cibuildwheel/bin/python -m pip install --quiet cibuildwheel==4.3.5
	build/cibuildwheel/bin/cibuildwheel --output-dir dist

clean:  ## remove all that was built; .venv stays
	rm -rf build dist *.egg-info labelsmooth/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
