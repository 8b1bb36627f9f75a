# Two commands do everything on a fresh machine: `make demo` runs the main job, `make test` the tests.
# The constraint takes a small CPU build of torch; a plain `pip install terramoe` is not constrained.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEV := $(VENV)/.dev

.PHONY: demo test null bench lint docs clean

demo: $(INSTALLED)
	$(BIN)/terramoe demo -o demo --overwrite

test: $(DEV)
	$(BIN)/python -m pytest

# Do the statistics tell the truth? Simulated systems of known difference; the last line is JSON.
null: $(INSTALLED)
	@$(BIN)/python -m terramoe.experiments.null

# Speed and memory beside a dense block and other libraries; QUICK=1 for a fixed subset in 3 minutes.
bench: $(DEV)
	$(BIN)/python bench/moe_layer.py $(if $(QUICK),--quick)

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
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
