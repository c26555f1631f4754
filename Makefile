# The commands of the project. Needs Python >= 3.11 and make; everything else goes into .venv.
#   make demo    see it work            make test    every test, minutes on two cores
#   make bench   measure it             make check   format, lint, types
#   make lerobot   LeRobot itself on datasets of ours, in environments of its own
#   make gpu     on a lent GPU, with a python3 that has torch: all of training in two calls (benchmarks/train_gpu.py)
# Pass options on with ARGS, as in: make test ARGS="-k sampler"

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
BIN    := $(VENV)/bin
HASH   := $(shell cksum < pyproject.toml | cut -d' ' -f1)
READY  := $(VENV)/.ready-$(HASH)
READY_BENCH := $(VENV)/.ready-bench-$(HASH)
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check bench gpu lerobot install clean interop
.DEFAULT_GOAL := demo

demo: install
	$(BIN)/imagine demo $(ARGS)

# One thread per worker: many small tests share the cores better than one large matrix product does.
test: install
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not bench" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY_BENCH)
	$(BIN)/imagine evaluate speed $(ARGS)

# Clients that nobody here wrote, in an environment of their own.
interop:
	@test -x .venv-interop/bin/python || $(PYTHON) -m venv .venv-interop
	@.venv-interop/bin/python -m pip install --quiet --disable-pip-version-check -e ".[interop]"
	.venv-interop/bin/python benchmarks/interop.py $(ARGS)

lerobot: install
	$(BIN)/python benchmarks/interop_lerobot.py $(ARGS)

gpu:
	$(PYTHON) benchmarks/train_gpu.py model $(ARGS)
	$(PYTHON) benchmarks/train_gpu.py judges $(ARGS)

install: $(READY)

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; name one with make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), once per change of pyproject.toml"
	@$(PIP) -e ".[dev]"
	@$(PIP) --no-deps "gym-pusht==0.1.8"
	@rm -f $(VENV)/.ready-* && touch $@

$(READY_BENCH): $(READY)
	@$(PIP) -e ".[dev,bench]"
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
