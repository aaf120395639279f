# Everything sets itself up: a virtual environment in .venv, brought up to date when pyproject.toml changes. Each target installs
# what it needs itself: the demo neither test tools nor plots.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
FOR_WEB := $(VENV)/.installed-web
FOR_BENCH := $(VENV)/.installed-bench
FOR_TESTS := $(VENV)/.installed-tests
# A file's tests stay in one process, so that they share its topology. Most of a test is waiting for one process to start.
PYTEST := $(VENV)/bin/python -m pytest --cache-clear --numprocesses auto --maxprocesses 4 --dist loadfile
INSTALL := $(VENV)/bin/python lab/environment/install.py

# Of the caller's, what would send packages elsewhere, bring in those of another Python, or have all sources compiled at each start.
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIRE_VIRTUALENV

.PHONY: demo web web-packages bench test test-all fuzz soak model check tools setup clean

demo: $(STAMP)
	$(VENV)/bin/python launch.py demo

# Four guests and the page on which they are seen, until Ctrl-C.
web: $(FOR_WEB)
	$(VENV)/bin/python launch.py run topologies/web.toml --web

web-packages: $(FOR_WEB)

bench: $(FOR_BENCH)
	$(VENV)/bin/python -m bench

# What fails beside other tests (status 1, and nothing else) is run once more by itself: is a failure the test's, or the load's?
ALONE := $(VENV)/bin/python -m pytest --last-failed --last-failed-no-failures none

test: $(FOR_TESTS)
	$(PYTEST) -m 'not long' || { [ $$? -eq 1 ] && $(ALONE) -m 'not long'; }

test-all: $(FOR_TESTS)
	$(PYTEST) --durations 40 || { [ $$? -eq 1 ] && $(ALONE); }

# Long: traffic with faults for half an hour, then 500 starts and stops: does anything grow, is anything left?
soak: $(STAMP)
	$(VENV)/bin/python -m bench.chaos.soak

# Long: guided fuzzing of all that a guest can send, and floods of hostile descriptors beside verified bystanders.
fuzz: $(FOR_TESTS)
	$(VENV)/bin/python -m tests.fuzzing

# The models of the protocols between threads (docs/models.md), and the bugs that are seeded in them: by spin, which `make tools` brings.
model: $(FOR_TESTS)
	$(VENV)/bin/python -m tests.models

check: $(FOR_TESTS)
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/python -m pytest -q tests/test_imports.py

tools:
	$(PYTHON) tests/support/tools.py

setup: $(FOR_TESTS)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL)
	touch $(STAMP)

$(FOR_BENCH): $(STAMP)
	$(INSTALL) bench
	touch $(FOR_BENCH)

$(FOR_WEB): $(STAMP)
	$(INSTALL) web
	touch $(FOR_WEB)

$(FOR_TESTS): $(STAMP)
	$(INSTALL) test bench
	touch $(FOR_BENCH) $(FOR_WEB) $(FOR_TESTS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
