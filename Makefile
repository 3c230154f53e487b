# Everything here sets itself up: the first target that needs it makes .venv and installs into it. Nothing else is
# touched. The demo installs what it runs, the tests every optional engine too. Set-up runs again when pyproject.toml or
# constraints.txt change.

PYTHON ?= python3
VENV ?= .venv
DATA ?=
DEMO_EXTRAS := distill,export
EXTRAS := distill,export,objects,coreml,executorch,openvino,litert,dev
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.ready-demo
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Tests run in two processes of one thread each; a file's tests stay together, they share what they make. They start
# many programs, which would compile all modules again where the environment says not to write bytecode.
TEST_PROCESSES ?= 2
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all fuzz check format bench clean

help:  ## this list
	@echo "Targets (each sets itself up on first use):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv with pinned versions, and nothing else

# torch goes first and alone, so that pip settles its build before anything that depends on it is looked at.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than Python 3.10"; echo; echo "hint: make PYTHON=python3.11"; exit 2; }
	@echo "== setting up $(VENV) (once) =="
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --progress-bar off -c constraints.txt $(TORCH)
	$(PIP) install --progress-bar off -c constraints.txt -e ".[$(1)]"
endef

$(READY): pyproject.toml constraints.txt
	$(call install,$(EXTRAS))
	@touch $(READY) $(DEMO_READY)

$(DEMO_READY): pyproject.toml constraints.txt
	$(call install,$(DEMO_EXTRAS))
	@touch $@

demo: $(DEMO_READY)  ## teacher to streaming, quantised student with a report; DATA=folder-or-manifest for your audio
	$(BIN)/python -m demo.run $(if $(DATA),--data "$(DATA)")

test: $(READY)  ## the default test suite
	$(PYTEST) -m "not slow"

test-all: $(READY)  ## the slow tests too
	$(PYTEST)

fuzz: $(READY)  ## damaged files of every kind, as many as docs/security.md says (hours); RD_FUZZ_N=1000 for fewer
	@for file in tests/fuzz/test_*.py; do \
	  case $$file in *manifest*|*audio*) cases=100000;; *) cases=20000;; esac; \
	  echo "== $$file"; \
	  RD_FUZZ_N=$${RD_FUZZ_N:-$$cases} $(BIN)/python -m pytest --timeout=0 $$file || exit 1; \
	done

check: $(READY)  ## ruff, formatting, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.types $(BIN)/lint-imports

format: $(READY)  ## apply ruff's formatting
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(READY)  ## the CPU benchmarks of docs/benchmarks.md, one after the other (about 15 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.offline_cpu
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.streaming_cpu

clean:  ## remove .venv, caches and what the demo wrote
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis demo/out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
