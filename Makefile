# Every target installs what it needs by itself, into a virtual environment in this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test lint clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)  ## train the default recipe, evaluate both modes, draw what it was thinking
	rm -rf runs/demo
	$(BIN)/ami train two-rooms --out runs/demo
	$(BIN)/ami show runs/demo

test: $(READY)  ## all tests, the few that train an agent too
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
