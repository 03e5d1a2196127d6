# Each target makes .venv first when it is missing or older than the metadata.
PYTHON ?= python3
BIN := .venv/bin

# A GPU machine without network has no .venv: it runs its own Python, in which the project is importable.
GPU_PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: demo test test-docs site fuzz faults attack bench speedrun gpu-check reproduce lint lock clean

.venv/installed: setup.cfg pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint requirements/constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed  ## the whole main job on drawn glyphs: no data are downloaded, no GPU
	$(BIN)/emnist-dali train --split balanced --source glyphs --recipe cpu --epochs 4

test: .venv/installed
	$(BIN)/python -m pytest

fuzz: .venv/installed  ## broken files, over 10,000 and others each time, for all that reads files: tests/README.md
	FUZZ_FACTOR=15 $(BIN)/python -m pytest tests/fuzz

faults: .venv/installed  ## full disks, damaged data, signals, and 50 kills of one training
	EMNIST_DALI_KILLS=50 $(BIN)/python -m pytest tests/faults

attack: .venv/installed  ## a user's folders, files, machine and habits against the program, an hour of it: tests/README.md
	ATTACK_FACTOR=20 $(BIN)/python -m pytest tests/attack

bench: .venv/installed  ## where the time goes on this machine; options in ARGS
	$(BIN)/python bench/throughput.py $(ARGS)

speedrun: .venv/installed  ## seconds to an accuracy, ten seeds a row, on an idle machine; rows and options in ARGS
	$(BIN)/python bench/speedrun/run.py $(ARGS)

gpu-check:  ## parity and speed on a GPU, planned for a quarter of an hour; ARGS="--source FOLDER" names idx files
	$(GPU_PYTHON) bench/gpu_check.py $(ARGS)

reproduce: .venv/installed  ## NIST's files, gpu-check, the GPU recipes on Balanced and ByClass with three seeds; can be stopped and repeated
	$(BIN)/python bench/reproduce.py $(ARGS)

test-docs: .venv/installed  ## every command and every piece of Python that README and docs/ show
	$(BIN)/python -m pytest docs

site: .venv/installed  ## the pages as a site with search and a reference, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile Dockerfile.nvidia

# pip's own constraints, where it has some, hold for uv too.
lock: .venv/installed  ## the newest versions that setup.cfg allows, for all systems and Pythons, into requirements/
	$(BIN)/pip install --quiet uv
	UV_CONSTRAINT="$$($(BIN)/pip config list | sed -n "s/^global.constraint='\(.*\)'$$/\1/p")" \
	  $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --extra dev --no-annotate \
	  --custom-compile-command 'make lock' setup.cfg --output-file requirements/constraints.txt

clean:
	rm -rf .venv .venv-loaders .venv-tensorflow .venv-ffcv build dist *.egg-info
