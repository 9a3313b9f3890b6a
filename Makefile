# `make demo`, `make test` and `make docs` install what they need. All work offline but for the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TASKS := $(VENV)/.tasks
DEV := $(VENV)/.dev
DOCS := .venv-docs
JAX := .venv-jax
# It asks for NumPy 1, of which it makes no use where it is measured; with its dependencies it would bring that.
SILVA := silva-networks==1.2.2
# A folder that holds the checkout would hide the packages in it from setuptools' own kind of editable install.
# Most modules of these packages are never imported, so that compiling all of them takes longer than it saves. Those that are
# must be kept compiled, which the variable forbids in many containers: a start of Lightning then takes three times as long.
unexport PYTHONDONTWRITEBYTECODE
# setuptools warns that it may drop this mode some day.
INSTALL := PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --no-compile --constraint constraints.txt \
	--config-settings editable_mode=compat --editable
# Many Pythons bring a pip that takes twice as long.
NEW_PIP := install --quiet --upgrade "pip>=25.1"

.PHONY: demo memory thinking test fuzz check docs bench bench-jax clean

# The networks are too small for more than one thread to help.
demo: memory thinking

memory: $(TASKS)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python train.py fit --config configs/hopfield.yaml
	cp "$$(ls -t logs/hopfield/*/recall.png | head -n 1)" recall.png
	@echo "Clean, corrupted and recalled digits (rows): recall.png"

thinking: $(TASKS)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python train.py fit --config configs/prefix_sums.yaml
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python train.py test --config configs/prefix_sums.yaml --ckpt_path best
	cp "$$(ls -t logs/prefix_sums/*/test/thinking_512.png | head -n 1)" thinking.png
	@echo "Running parity of 512 bits, step by step downwards, learned from 16 (red: still wrong): thinking.png"

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

# The site, in site/; a warning is an error, and so is a link that leads nowhere.
docs: $(DOCS)/.packages
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --clean

# glibc is told to keep freed memory: otherwise fetching it again decides the times of the Hopfield network.
# `make bench AGAINST=PATH` compares with another checkout, too.
bench bench-jax: export MALLOC_TRIM_THRESHOLD_ := 2000000000
bench bench-jax: export MALLOC_MMAP_THRESHOLD_ := 2000000000
bench: $(TASKS)
	$(INSTALL) ".[tasks,peers]"
	$(BIN)/pip install --quiet --no-deps $(SILVA)
	$(BIN)/python -m benchmarks peers
	$(if $(AGAINST),$(BIN)/python -m benchmarks against "$(AGAINST)")

bench-jax: $(TASKS) $(JAX)/.packages
	$(BIN)/python -m benchmarks jax --python $(JAX)/bin/python

# JAX has requirements of its own, so it is kept apart.
$(JAX)/.packages: Makefile
	$(PYTHON) -m venv $(JAX)
	$(JAX)/bin/pip install --quiet jax==0.10.2 jaxopt==0.8.5 optimistix==0.1.0 lineax==0.1.1
	touch $@

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip $(NEW_PIP)

$(TASKS): pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) ".[tasks]"
	touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) ".[tasks,deploy,dev]"
	touch $(TASKS) $@

# The site is built from the source files, without importing them.
$(DOCS)/.packages: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip $(NEW_PIP)
	$(DOCS)/bin/pip install --quiet --no-compile --constraint constraints.txt --group docs
	touch $@

clean:
	rm -rf $(VENV) $(DOCS) $(JAX) logs site recall.png thinking.png
