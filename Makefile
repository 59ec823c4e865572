# The same commands for a newcomer, a developer and CI. Needs nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# A database URL for the demo; SQLite in a temporary folder without one.
URL ?=
# More arguments for pytest: make test ARGS="-k fork"
ARGS ?=

# The rows of tox.ini to run, with commas; all without it.
ROWS ?=
# Interpreters besides those on PATH.
PYENV_ROOT ?= $(HOME)/.pyenv
PYTHONS ?= $(wildcard $(PYENV_ROOT)/versions/3.*/bin/python)

.PHONY: help demo test test-all matrix bench lint types docs format build clean

help:
	@echo "make demo              processes compete for a lock, on SQLite"
	@echo "make demo URL=...      the same on a server, e.g. postgresql+psycopg://user@host/database"
	@echo "make test              all tests; ARGS goes to pytest"
	@echo "make test-all          every broker of Celery with every database, too"
	@echo "make matrix            each version of Python and the libraries; ROWS=lowest,wheel for some of tox.ini's rows"
	@echo "make bench             figures beside other libraries; ARGS, e.g. ARGS=--quick"
	@echo "make lint types        ruff; mypy and pyright"
	@echo "make docs              the documentation, in docs/_build; a warning is an error"
	@echo "make build             wheel and sdist in dist/"

demo: $(VENV)/installed-$(if $(URL),servers,cli)
	@$(BIN)/dlock demo $(if $(URL),'$(URL)')

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(ARGS)

test-all: $(VENV)/installed-dev
	DLOCK_TEST_ALL=1 $(BIN)/python -m pytest $(ARGS)

matrix: $(VENV)/python
	@$(BIN)/python -m pip install --quiet --group matrix
	$(BIN)/tox run $(if $(PYTHONS),--discover $(PYTHONS)) $(if $(ROWS),-e $(ROWS)) $(if $(ARGS),-- $(ARGS))

bench: $(VENV)/installed-dev
	@$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m benchmarks $(ARGS)

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
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

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
