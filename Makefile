# The two commands of the README are `make run` and `make test`; each sets up all it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PYX    := $(wildcard fastmta/_core/*.pyx fastmta/_core/*.pxd)

.PHONY: help run test check build setup packages clean

help:
	@echo "make run    set up and start the demo"
	@echo "make test   set up, lint, type-check and run every test"
	@echo "make check  lint and type-check only"
	@echo "make build  compile what changed in fastmta/_core"
	@echo "make clean  remove everything that make created"

run: build
	$(BIN)/fastmta demo

test: build packages check
	$(BIN)/pytest -q

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(abspath $(BIN)):$$PATH" cython-lint fastmta  # it calls pycodestyle by name
	$(BIN)/mypy

setup: $(VENV)/installed
build: $(VENV)/built

$(VENV)/installed: pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fastmta needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) tools/system_packages.py build
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet 'setuptools>=77' 'cython>=3.1'
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[dev]'
	touch $@

$(VENV)/built: $(VENV)/installed $(PYX) setup.py
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

packages: $(VENV)/installed
	$(BIN)/python tools/system_packages.py test

clean:
	rm -rf $(VENV) build dist *.egg-info fastmta/_core/*.c fastmta/_core/*.so
