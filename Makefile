# From a fresh clone: `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# The pin stands in pyproject.toml and nowhere else.
TORCH  := $(shell sed -n 's/^requires = .*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
MAX_JOBS ?= 2
export MAX_JOBS
# Of the tests, most of whose time is other processes' imports of torch. PROCESSES=0: all in one.
PROCESSES ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))
SOURCES := $(shell find csrc torchgil/include -name '*.cpp' -o -name '*.h')

.PHONY: demo test lint bench bench-quick asan tsan debug stress peers coverage installs matrix wheel release docs clean

demo: $(VENV)/.built
	$(BIN)/torchgil demo --plot demo.png

test: $(VENV)/.built
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)
	$(BIN)/codespell

bench: $(VENV)/.built
	for b in benchmarks/bench_*.py; do $(BIN)/python $$b || exit 1; done
	$(BIN)/python benchmarks/plots.py

bench-quick: $(VENV)/.built # one short round of each, into build/bench: whether it runs, and roughly what it says
	mkdir -p build/bench
	for b in benchmarks/bench_*.py; do \
	  $(BIN)/python $$b --quick --json build/bench/$$(basename $$b .py).json || exit 1; done

asan: $(VENV)/.built
	.ci/sanitize address

tsan: $(VENV)/.built
	.ci/sanitize thread

debug: $(VENV)/.built # the tests with assertions: no Python object is counted without the GIL
	.ci/debug

stress: $(VENV)/.built # everything at once, for TORCHGIL_STRESS_S seconds (600), then the long forms of what the suite does short
	$(BIN)/python -m tests.faults.stress
	TORCHGIL_STRESS_ROUNDS=10000 TORCHGIL_STRESS_TIMES=20 TORCHGIL_STRESS_EXAMPLES=2000 TORCHGIL_STRESS_S=10 TORCHGIL_STRESS_HANGS=1000 \
	  TORCHGIL_TEST_REQUESTS=100000 TORCHGIL_TEST_STRIDE=1 $(BIN)/python -m pytest -q --timeout 3600 tests/faults tests/ops/test_properties.py \
	  tests/tracing/test_report_properties.py tests/serving/test_batcher_model.py tests/serving/test_batcher_amid.py tests/forward/test_package.py \
	  tests/forward/test_package_file.py tests/forward/test_hostile.py tests/tracing/test_hangs_lines.py

peers: $(VENV)/.built # the tests that need Ray, numba, a notebook, py-spy or other people's extensions, with all of them
	.ci/peers

coverage: $(VENV)/.built # of the tests, in torchgil/ and csrc/: build/coverage
	.ci/coverage

installs: # every way of installing, each in a fresh environment
	.ci/installs

matrix: # every tried pair of Python and torch, each in a fresh environment: docs/compatibility.md
	.ci/matrix

wheel: $(VENV)/.built # dist/: a wheel for the torch that is there, named for it, and one of the half without torch
	.ci/wheel $(BIN)/python
	.ci/wheel $(BIN)/python --without-torch

release: $(VENV)/.built # dist/: sdist and wheels of this commit, checked, each installed and tried; nothing is uploaded
	.ci/release $(BIN)/python

docs: $(VENV)/.built # build/docs/index.html: the pages of docs/, and the API from the docstrings
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/docs

clean:
	rm -rf build dist *.egg-info torchgil/_gil.*.so torchgil/_torch.*.so torchgil/_built_for.py $(VENV)/.built

# torch first and exactly: any looser requirement can bring gigabytes of CUDA packages.
$(VENV)/.torch: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)" "setuptools>=77" ninja numpy "pybind11>=3"
	touch $@

$(VENV)/.built: $(VENV)/.torch setup.py $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@
