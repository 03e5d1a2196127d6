# Each target makes .venv first when it is missing or older than the metadata.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/installed  ## the whole main job on drawn glyphs: no download, no GPU
	$(BIN)/emnist-dali train --split balanced --source glyphs --recipe cpu --epochs 4

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build dist *.egg-info
