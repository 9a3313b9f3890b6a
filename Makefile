# `make demo` and `make test` set up what they need. Both work offline but for the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A folder that holds the checkout would hide the packages in it from setuptools' own kind of editable install.
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt --config-settings editable_mode=compat --editable

.PHONY: demo test check bench clean

# The networks are too small for more than one thread to help.
demo: $(INSTALLED)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/rbp-lightning fit --config configs/hopfield.yaml
	cp "$$(ls -t logs/hopfield/*/recall.png | head -n 1)" recall.png
	@echo "Clean, corrupted and recalled digits (rows): recall.png"

test: $(INSTALLED)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n auto --dist worksteal

# glibc is told to keep freed memory: else fetching it again decides the times of the Hopfield network.
bench: $(INSTALLED)
	$(INSTALL) ".[peers]"
	MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_MMAP_THRESHOLD_=2000000000 $(BIN)/python -m benchmarks.peers

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) logs recall.png
