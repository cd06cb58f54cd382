PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install run test quick check docs image-test

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

install: $(STAMP)  ## make .venv with the tested versions

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

run: $(STAMP)  ## compress the Breakout agent to half its channels
	$(BIN)/python -m lrp_compress game=breakout prune.ratio=0.5

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest

quick: check  ## in two minutes what a change is likely to break: checks, and tests that play no games
	$(BIN)/python -m pytest -m "not slow"

check: $(STAMP)  ## check format, lint, types and the Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile

docs: $(STAMP)  ## build the documentation into build/docs; a broken link is an error
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs

image-test: $(STAMP)  ## build the image and run all it can do; needs a Docker engine, minutes and gigabytes
	$(BIN)/python -m pytest docker/test_image.py -n 0 -s
