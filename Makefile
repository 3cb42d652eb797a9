# make setup   a virtual environment in .venv with everything pinned
# make demo    train a small network, explore it on this machine, export and run it
# make test    every check: lint, types, tests
#
# torch is the largest dependency. On Linux, PyPI's build of it brings CUDA (gigabytes);
# for the CPU build set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index (see pytorch.org):
#     PIP_EXTRA_INDEX_URL=... make setup

PYTHON ?= python3
DEMO_OUT ?= demo
DEMO_BUDGET ?= 2m

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done

.PHONY: setup demo test lint clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	    echo 'error: tvmx needs Python 3.11, 3.12 or 3.13; "$(PYTHON)" is' \
	        "$$($(PYTHON) --version 2>&1). Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	    echo 'error: "$(PYTHON)" cannot make virtual environments' \
	        '(on Debian and Ubuntu: apt install python3-venv)' >&2; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,examples]'
	$(BIN)/tvmx --version
	@touch $@

demo: setup
	$(BIN)/python examples/digits.py --out $(DEMO_OUT)
	$(BIN)/tvmx explore $(DEMO_OUT)/digits.onnx --target host --data $(DEMO_OUT)/digits.npz \
	    --schedules examples/schedules --budget $(DEMO_BUDGET) --out $(DEMO_OUT)/run --fresh
	rm -rf $(DEMO_OUT)/bundle-host $(DEMO_OUT)/bundle-rpi4
	$(BIN)/tvmx export $(DEMO_OUT)/run --out $(DEMO_OUT)/bundle-host
	$(BIN)/tvmx export $(DEMO_OUT)/run --target rpi4 --out $(DEMO_OUT)/bundle-rpi4
	$(BIN)/tvmx run $(DEMO_OUT)/bundle-host

test: setup
	@scripts/check

lint: setup
	@scripts/check --lint

clean:
	rm -rf demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis $(VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
