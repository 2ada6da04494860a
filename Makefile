# make demo: see it. make test: check it. make soak: an hour of faults. make docs: the
# documentation. make audit: known faults of what we use. All need python >= 3.11 (with venv and pip), and make their environment in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What an installation copies or reads; everything else is used where it lies.
INSTALLED := pyproject.toml $(wildcard etc/ipython/startup/*.py etc/jupyter/*/*.json etc/grafana/*.json)

# Tests that start brokers, kernels and hubs and wait for them most of the time. All others run beside them, in a process of their own.
HOSTS := $(addprefix tests/,faults hostile hub metrics provisioner realtime server)

.PHONY: demo test test-hosts test-rooms soak docs audit clean

demo: $(VENV)/demo.stamp
	@$(BIN)/jupyter gpushare demo --notebooks examples --output .demo

test: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory --jobs=2 --keep-going test-hosts test-rooms

test-hosts: $(VENV)/dev.stamp
	$(BIN)/python -m pytest $(HOSTS)

# Its output comes when it is done: two at once cannot be read.
test-rooms: $(VENV)/dev.stamp
	@mkdir -p build
	$(BIN)/python -m pytest -o cache_dir=.pytest_cache/rooms $(addprefix --ignore=,$(HOSTS)) > build/test-rooms.txt 2>&1; status=$$?; cat build/test-rooms.txt; exit $$status

# An hour; as root also on a disk that is full and read-only. SOAK="--minutes 5 --seed 7" for another one.
soak: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/soak/run.py $(SOAK)

docs: $(VENV)/docs.stamp
	$(BIN)/sphinx-build -W --keep-going -q docs build/docs
	@echo "Read it: build/docs/index.html"

# Asks pypi.org about each package, so it needs the internet, which CI has not. --strict: without it, nobody asked is nothing found.
audit: $(VENV)/dev.stamp $(VENV)/audit.stamp
	@mkdir -p build
	$(BIN)/python -m pip freeze --exclude-editable > build/installed.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r build/installed.txt

clean:
	rm -rf $(VENV) .demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/%.stamp: $(INSTALLED) | $(VENV)/bin/python
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "gpushare needs Python: $(PYTHON) is not there. Name another one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gpushare needs Python 3.11 or newer: $(PYTHON) is $$($(PYTHON) -V). Name another one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment. On Debian: apt install python3-venv"; exit 1; }
