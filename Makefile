# The same commands for a newcomer, a developer and CI. Needs nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# A database URL for the demo; SQLite in a temporary folder without one.
URL ?=
# More arguments for pytest: make test ARGS="-k fork"
ARGS ?=
# Tests wait more than they compute: two at a time for each processor.
JOBS ?= $(shell expr 2 '*' $$(getconf _NPROCESSORS_ONLN))
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup
COVERED = COVERAGE_FILE=$(CURDIR)/.coverage $(PYTEST) --cov --cov-report=

# What `make coverage` runs: quick, fast, rest.
SETS ?= fast rest

# The rows of tox.ini to run, with commas; all without it.
ROWS ?=
# Interpreters besides those on PATH.
PYENV_ROOT ?= $(HOME)/.pyenv
PYTHONS ?= $(wildcard $(PYENV_ROOT)/versions/3.*/bin/python)

# One schedule again, or how long to look for a bad one.
SIMULATE = $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

.PHONY: help demo quick test test-all simulate coverage matrix bench house lint types docs format build clean

help:
	@echo "make demo              processes compete for a lock, on SQLite"
	@echo "make demo URL=...      the same on a server, e.g. postgresql+psycopg://user@host/database"
	@echo "make quick             the tests that need no server, in a minute; ARGS goes to pytest"
	@echo "make test              the tests of everyday, on every kind of database, in some minutes"
	@echo "make test-all          these and the rest: every driver and broker, browsers, builds"
	@echo "make simulate          schedules of simulated threads, server and faults, in seconds; MINUTES=60 for longer"
	@echo "make simulate SEED=... one of them again, told as a story"
	@echo "make coverage          the lines and branches that all tests reach, by package; SETS=quick for some of them"
	@echo "make matrix            each version of Python and the libraries; ROWS=lowest,wheel for some of tox.ini's rows"
	@echo "make bench             figures beside other libraries; ARGS, e.g. ARGS=--quick"
	@echo "make house             how large the core is: modules, lines, the path of one acquire"
	@echo "make lint types        ruff; mypy and pyright"
	@echo "make docs              the documentation, in docs/_build; a warning is an error"
	@echo "make build             wheel and sdist in dist/"

demo: $(VENV)/installed-$(if $(URL),servers,cli)
	@$(BIN)/python -m example_projects.demo $(if $(URL),'$(URL)')

test: $(VENV)/installed-dev
	$(PYTEST) $(ARGS)

quick: $(VENV)/installed-dev
	$(PYTEST) --set=quick $(ARGS)

# Both sets, even if the first fails; what failed stands in the last lines.
test-all: $(VENV)/installed-dev
	@failed=0; export DLOCK_FAILURES=$$(mktemp); \
	$(PYTEST) --set=fast --hypothesis-profile=many $(ARGS) || failed=1; \
	$(PYTEST) --set=rest $(ARGS) || failed=1; \
	cat $$DLOCK_FAILURES; rm $$DLOCK_FAILURES; exit $$failed

# The lines and branches that the sets reach together. Not in `test-all`: before Python 3.12 a thread that starts while
# another one is being traced may die ("Cannot install a trace function while another trace function is being installed").
coverage: $(VENV)/installed-dev
	@$(BIN)/coverage erase
	-$(foreach set,$(SETS),$(COVERED) --cov-append --set=$(set) $(ARGS);)
	COVERAGE_FILE=$(CURDIR)/.coverage $(BIN)/python .ci/coverage-by-package $(SETS)

simulate: $(VENV)/installed-dev
	@$(BIN)/python -m tests.simulation $(SIMULATE) $(ARGS)

matrix: $(VENV)/python
	@$(BIN)/python -m pip install --quiet --group matrix
	$(BIN)/tox run $(if $(PYTHONS),--discover $(PYTHONS)) $(if $(ROWS),-e $(ROWS)) $(if $(ARGS),-- $(ARGS))

bench: $(VENV)/installed-dev
	@$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m benchmarks $(ARGS)

house: $(VENV)/installed-dev
	@$(BIN)/python -m benchmarks.house

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/installed-dev
	$(BIN)/python -m sphinx -W --keep-going --quiet docs docs/_build

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(VENV)/installed-dev
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is too old: use 3.11 or newer, for example make PYTHON=python3.12"; exit 1; }
	@echo "making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@touch $@

$(VENV)/installed-cli: $(VENV)/python pyproject.toml
	@echo "installing dlock-suite[cli] ..."
	@$(BIN)/python -m pip install --quiet -e '.[cli]'
	@touch $@

$(VENV)/installed-servers: $(VENV)/python pyproject.toml
	@echo "installing dlock-suite[cli,postgresql,mysql] ..."
	@$(BIN)/python -m pip install --quiet -e '.[cli,postgresql,mysql]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/python pyproject.toml
	@echo "installing everything for the tests ..."
	@$(BIN)/python -m pip install --quiet -e '.[cli,postgresql,mysql,sqlite-async]' --group dev
	@$(BIN)/python -m pip install --quiet --group test-c >/dev/null 2>&1 \
		|| echo "mysqlclient cannot be built here (it needs a C compiler, pkg-config, libmariadb-dev): its tests are skipped"
	@touch $@
