# `make demo` and `make test` install what they need. Both work offline but for the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TASKS := $(VENV)/.tasks
DEV := $(VENV)/.dev
# A folder that holds the checkout would hide the packages in it from setuptools' own kind of editable install.
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt --config-settings editable_mode=compat --editable

.PHONY: demo test fuzz check bench clean

# The networks are too small for more than one thread to help.
demo: $(TASKS)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python train.py fit --config configs/hopfield.yaml
	cp "$$(ls -t logs/hopfield/*/recall.png | head -n 1)" recall.png
	@echo "Clean, corrupted and recalled digits (rows): recall.png"

test: $(DEV)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n auto --dist worksteal

# The attacks of tests/fuzz at full length, with their figures.
fuzz: $(DEV)
	RBP_FUZZ=long OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest tests/fuzz

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# glibc is told to keep freed memory: otherwise fetching it again decides the times of the Hopfield network.
# `make bench AGAINST=PATH` compares with another checkout, too.
bench: export MALLOC_TRIM_THRESHOLD_ := 2000000000
bench: export MALLOC_MMAP_THRESHOLD_ := 2000000000
bench: $(TASKS)
	$(INSTALL) ".[tasks,peers]"
	$(BIN)/python -m benchmarks peers
	$(if $(AGAINST),$(BIN)/python -m benchmarks against "$(AGAINST)")

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(TASKS): pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) ".[tasks]"
	touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) ".[tasks,dev]"
	touch $(TASKS) $@

clean:
	rm -rf $(VENV) logs recall.png
