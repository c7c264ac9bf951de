# prompttuner: `make demo` shows it at work, `make test` tests it; nothing but Python 3.11+ is needed beforehand.

VENV ?= .venv
PYTHON ?= python3
PYTEST_ARGS ?=
export OMP_NUM_THREADS ?= 1

BIN := $(VENV)/bin
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev

.PHONY: help venv dev demo demo-slurm test lint types docs soak bench clean

help:
	@echo "make demo        install into $(VENV) and tune six prompts by their deadlines on this machine"
	@echo "make demo-slurm  the same on a throw-away Slurm cluster (Debian/Ubuntu packages)"
	@echo "make test        install what the tests need and run them all"
	@echo "make lint types  ruff; mypy"
	@echo "make docs        the documentation as a site, in build/docs; a broken link fails"
	@echo "make soak        hours of random faults (SOAK_HOURS=1)"
	@echo "make bench       every benchmark, quick form (BENCH_ARGS= for the full one)"
	@echo "make venv        only install into $(VENV)"
	@echo "make clean       remove what was built, $(VENV) included"

venv: $(BASE)

dev: $(DEV)

$(BASE): pyproject.toml constraints.txt
	@PYTHON=$(PYTHON) tools/make_venv.sh $(VENV)
	@touch $@

$(DEV): pyproject.toml constraints.txt
	@PYTHON=$(PYTHON) tools/make_venv.sh $(VENV) test,lint,docs,postgres,plots,top,tensorboard
	@touch $(BASE) $@

demo: $(BASE)
	$(BIN)/python examples/demo.py

demo-slurm: $(DEV)
	@tests/install_system_packages.sh
	$(BIN)/python examples/demo_slurm.py

test: $(DEV)
	@tests/install_system_packages.sh
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(PYTEST_ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/python -m mypy

docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

SOAK_HOURS ?= 1
soak: $(DEV)
	@tests/install_system_packages.sh
	$(BIN)/python benchmarks/soak.py --hours $(SOAK_HOURS) --json

BENCH_ARGS ?= --quick
bench: $(DEV)
	@for file in benchmarks/*.py; do \
	    grep -q '__main__' $$file || continue; \
	    case $$file in benchmarks/soak.py) continue;; esac; \
	    echo "== $$file $(BENCH_ARGS)"; $(BIN)/python $$file $(BENCH_ARGS) || exit 1; \
	done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .demo .cluster
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
