# Two commands are enough on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
TORCH := torch==2.13.0+cpu

.PHONY: setup demo test test-newest lint effect-small clean

setup: $(VENV)/.ready

# The CPU build of torch comes from pip's configured sources where they have it, else through uv, which
# knows PyTorch's own index.
$(VENV)/.ready: requirements/cpu.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-deps $(TORCH) 2>/dev/null \
	  || ( $(BIN)/python -m pip install --quiet uv && $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --torch-backend cpu torch==2.13.0 )
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/divray run divray/quickstart/quickstart.yaml --out $(RUN)

# Two processes, a file of tests each: most tests wait for Ray or an engine to start.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The tests of sampling, with the newest vLLM of the range in pyproject.toml in place of the oldest.
test-newest: setup
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/newest -r requirements/newest.txt
	PYTHONPATH=$(VENV)/newest $(BIN)/python -m pytest tests/test_engine.py tests/test_sampling.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy divray jobs benchmarks

# The mechanism of benchmarks/effect.py on the quick start; too small for a finding.
effect-small: setup
	$(BIN)/python benchmarks/effect.py --work runs/effect-small --tasks "quick start" --k 5 --draws 2 --llms embedded:smollm2 \
	  --set sampling.candidates_per_relation=16 sampling.naive_candidates_per_relation=8 extraction.trials=0 \
	  --out runs/effect-small/effect.json

clean:
	rm -rf $(VENV) build *.egg-info
