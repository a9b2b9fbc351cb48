# Every target installs what it needs by itself, into a virtual environment in this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

LOWEST := .venv-lowest
PACKAGES := ami_agent modules envs tests benchmarks

.PHONY: demo test test-lowest lint docs clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo 'installs AMI, PyTorch and what they need into $(VENV); this takes minutes'
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/dev-ready: $(READY)
	@echo 'installs the tools of the tests into $(VENV)'
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)  ## train the default recipe, evaluate both modes, draw the planning rollouts
	test ! -e runs/demo/eval.json || rm -rf runs/demo  # a finished run: a new one is started
	if test -e runs/demo/config.json; then \
	  $(BIN)/ami train two-rooms --out runs/demo --resume || \
	    { test $$? = 2 && rm -rf runs/demo; }; fi  # 2: another version wrote it
	test -e runs/demo/config.json || $(BIN)/ami train two-rooms --out runs/demo
	$(BIN)/ami show runs/demo

test: $(VENV)/docs-ready  ## all tests, including the few that train an agent
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

$(LOWEST)/ready: pyproject.toml constraints-lowest.txt
	python3.11 -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --constraint constraints-lowest.txt --editable '.[dev]'
	touch $@

test-lowest: $(LOWEST)/ready  ## the tests with the lowest allowed versions, on Python 3.11
	$(LOWEST)/bin/python -m pytest --numprocesses auto --dist worksteal -m 'not slow and not long'

lint: $(VENV)/dev-ready  ## style, types, and syntax that Python 3.10 has
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vermin --quiet --no-tips --target=3.10- --violations --exclude long $(PACKAGES)

$(VENV)/docs-ready: $(VENV)/dev-ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(VENV)/docs-ready  ## the documentation site, into site/
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(LOWEST) build site *.egg-info
