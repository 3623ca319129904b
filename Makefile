# The two commands of the README are `make run` and `make test`; each sets up all it needs.
PYTHON ?= python3
JOBS   ?= 3  # tests at a time: most of them wait for others
VENV   := .venv
BIN    := $(VENV)/bin
NODE   := $(VENV)/node
PXD    := $(wildcard fastmta/*/*.pxd bench/_core/*.pxd)
PYX    := $(wildcard fastmta/_core/*.pyx fastmta/_core/*.h bench/_core/*.pyx bench/_core/*.h) \
          $(PXD) $(wildcard $(PXD:.pxd=.py))

.PHONY: help run test bench faults fuzz check build setup packages peers sanitize clean

help:
	@echo "make run    set up and start the demo"
	@echo "make test   set up, lint, type-check and run every test"
	@echo "make bench  measure fastmta beside other servers, for a quarter of an hour"
	@echo "make faults  kill, cut off, starve and lie to the server for up to an hour: is anything lost?"
	@echo "make fuzz   give each reader of outside bytes ten million inputs, for hours"
	@echo "make check  lint and type-check only"
	@echo "make build  compile what changed"
	@echo "make sanitize  run the tests of _core, mail and protocol, and fuzz, under gcc's address and UB sanitizers"
	@echo "make clean  remove everything that make created"

run: build
	$(BIN)/fastmta demo

test: build packages check
	$(BIN)/pytest -q -n $(JOBS) --dist worksteal

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(abspath $(BIN)):$$PATH" cython-lint fastmta bench  # it calls pycodestyle by name
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
	$(BIN)/cythonize --quiet -3 --inplace bench/_core/*.pyx  # apart: bench is not installed
	touch $@

# The sanitizers' runtime has to be there before Python is, and to see its allocations.
SANITIZED := .build/sanitized
SANITIZE  := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
RUNTIME    = $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libubsan.so)

sanitize: build
	CFLAGS="-g $(SANITIZE)" LDFLAGS="$(SANITIZE)" $(BIN)/python setup.py --quiet build \
	  --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	LD_PRELOAD="$(RUNTIME)" PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
	  PYTHONPATH=$(SANITIZED)/lib:. sh -c '$(BIN)/pytest -q -s tests/core tests/mail tests/protocol \
	  tests/fuzz --timeout=0 -o pythonpath="$(SANITIZED)/lib ." -k "not short_run" && \
	  $(BIN)/python -P -m tests.fuzz.mass --inputs 20000'

packages: $(VENV)/installed peers
	$(BIN)/python tools/system_packages.py test
	test -d $(NODE)/node_modules/node-pop3 || \
	  npm install --silent --no-audit --no-fund --prefix $(NODE) node-pop3@0.11.0  # Debian has none

# With a folder of its own for each run: make bench BENCH='--out results-1'
bench: build peers
	$(BIN)/python -m bench all $(BENCH)

# One fault alone: make faults FAULTS='--only crash'
faults: build packages
	$(BIN)/python -m tests.faults $(FAULTS)

# Goes on where it was stopped: make fuzz FUZZ='--jobs 4 --seconds 600 smtp_server pop3'
fuzz: build
	$(BIN)/python -m tests.fuzz.mass --record .build/fuzz.json $(FUZZ)

# Servers that the benchmark runs beside fastmta; what cannot be had is said, and left out.
peers: $(VENV)/installed
	-$(BIN)/python tools/system_packages.py bench
	$(BIN)/python tools/bench_peers.py

clean:
	rm -rf $(VENV) $(SANITIZED) build dist *.egg-info fastmta/*/*.c fastmta/*/*.so \
	  bench/_core/*.c bench/_core/*.so
