# make setup   a virtual environment in .venv with everything pinned
# make demo    train a small network, explore it on this machine, export and run it
# make test    every check: lint, types, tests
# make setup-sim  what simulated boards need: as root the programs, then the arm64 guest
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

# llvm-mca 22 knows the cores' timings; qemu-user-static has no plugins.
SIM_PACKAGES := qemu-user llvm-22 gcc libc6-dev

.PHONY: setup setup-sim demo test lint clean
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

setup-sim: setup
	@if [ "$$(id -u)" = 0 ]; then \
	    apt-get update && apt-get install -y --no-install-recommends $(SIM_PACKAGES); \
	else \
	    echo 'not root: what is missing of the next line is installed by hand' && \
	    echo '    sudo apt-get install --no-install-recommends $(SIM_PACKAGES)'; \
	fi
	$(BIN)/tvmx simulate --prepare

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
