# One virtual environment, made once: `make demo` needs the core alone, everything else the development tools too.
PYTHON ?= python3
VENV   ?= .venv
DEVICE ?= cpu
JOBS   ?= 2
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
EXTRAS := dev,llm,privacy,parquet,deploy,ray
CORE   := $(VENV)/.fedloom-core
TOOLS  := $(VENV)/.fedloom-tools

.PHONY: help demo test lint types bench chaos claims readme clean
.DEFAULT_GOAL := help

help:             ## what there is
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10

# torch goes first: nothing that follows may choose another build of it
$(CORE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(TOOLS): $(CORE)
	$(PIP) -e '.[$(EXTRAS)]'
	touch $@

demo: $(CORE)     ## five methods on digits, with a report; under two minutes
	$(BIN)/fedloom compare fedavg fedprox scaffold fedadam ditto \
		--data digits --clients 20 --partition dirichlet:0.1 --rounds 30 --seeds 3 --set solver.batch_size=10 \
		--out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: lint types  ## style, types, all tests
	$(BIN)/python -m pytest -n $(JOBS)

lint: $(TOOLS)    ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TOOLS)   ## types
	$(BIN)/pyright

bench: $(TOOLS)   ## speed, side by side with plain loops; DEVICE=cuda for a GPU
	$(BIN)/python -m benchmarks.speed --device $(DEVICE)

chaos: $(TOOLS)   ## real sites under deaths, bad networks, full disks and attacks, 200 seeded schedules (half an hour)
	cd tests/deploy && ../../$(BIN)/python chaos.py --schedules 200

claims: $(TOOLS)  ## every method's claim, run and judged (hours)
	$(BIN)/fedloom claim --all

readme: $(TOOLS)  ## the table of methods in README.md, and all pages that are made of cards and results
	$(BIN)/fedloom claims
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/pages.py
	$(BIN)/python docs/compatibility.py

clean:            ## remove the environment and caches; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info src/*.egg-info
