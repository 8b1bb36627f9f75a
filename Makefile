# Two commands do everything on a fresh machine: `make demo` runs the main job, `make test` the tests.
# The constraint takes a small CPU build of torch; a plain `pip install terramoe` is not constrained.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEV := $(VENV)/.dev

.PHONY: demo test test-geo null bench bench-systems lint docs clean

demo: $(INSTALLED)
	$(BIN)/terramoe demo -o demo --overwrite

test: $(DEV)
	$(BIN)/python -m pytest

# What needs torchvision, timm or torchgeo, in an environment of its own with the whole PyTorch (about 6 GB).
test-geo:
	$(PYTHON) -m venv $(VENV)-geo
	$(VENV)-geo/bin/python -m pip install --quiet --editable '.[geo]' pytest hypothesis
	$(VENV)-geo/bin/python -m pytest tests/nets/test_backbones.py

# Do the statistics tell the truth? Simulated systems of known difference; the last line is JSON.
null: $(INSTALLED)
	@$(BIN)/python -m terramoe.experiments.null

# Speed and memory beside a dense block and other libraries; QUICK=1 for a fixed subset in 3 minutes.
bench: $(DEV)
	$(BIN)/python bench/moe_layer.py $(if $(QUICK),--quick)

# Time, memory and size of every registered system at the papers' own input sizes; QUICK=1 for fewer repetitions.
bench-systems: $(DEV)
	$(BIN)/python bench/systems.py $(if $(QUICK),--quick)

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

docs: $(INSTALLED)
	$(BIN)/python docs/make_tables.py
	$(BIN)/python docs/make_recipes.py

$(INSTALLED): pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CURDIR)/constraints/cpu.txt $(BIN)/python -m pip install --quiet --editable .
	touch $@

$(DEV): $(INSTALLED)
	PIP_CONSTRAINT=$(CURDIR)/constraints/cpu.txt $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-geo build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
