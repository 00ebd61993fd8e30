# `make` alone lists the targets.
PYTHON ?= $(shell .ci/python)
VENV := .venv
STAMP := $(VENV)/.ready
PYTEST := $(VENV)/bin/pytest --durations 10 --timeout 300 --maxfail 20
SOURCES := pyproject.toml $(wildcard tun/*.pyx) $(wildcard tun/*.pxd)
# Otherwise each of some hundred programs that the tests start would compile all of its modules.
export PYTHONDONTWRITEBYTECODE :=

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /	/' | expand -t 14

setup: $(STAMP)  ## make .venv with meshvpn, meshvpnd, meshvpn-rendezvous and the compiled engine

$(STAMP): $(SOURCES) .ci/packages .ci/python
	.ci/packages
	test -x $(VENV)/bin/python || $$(.ci/python) -m venv $(VENV)
	@echo "installing meshvpn and its dependencies, building the engine (about a minute)"
	@$(VENV)/bin/pip install -qq --disable-pip-version-check --upgrade pip setuptools
	@$(VENV)/bin/pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@

check: setup  ## formatting, lints, types, layering, spelling
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check --output-format concise .
	$(VENV)/bin/mypy
	$(VENV)/bin/stubtest tun.engine tun.relay
	$(VENV)/bin/lint-imports
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH $(VENV)/bin/cython-lint --max-line-length 120 tun
	$(VENV)/bin/codespell

test: check  ## everything that is checked and tested, the fast things first
	$(PYTEST) -n 2 -m "not netns" tests
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -vv -m "netns and not alone" tests
	$(PYTEST) -vv -m alone tests

check-native: setup  ## the engine's tests and a minute of fuzzing under AddressSanitizer and UndefinedBehaviorSanitizer
	.ci/check-native
	.ci/fuzz-native 60

fuzz-native: setup  ## coverage-guided fuzzing of the engine's packet parser, SECONDS=3600 for an hour
	.ci/fuzz-native $(or $(SECONDS),600) $(CORPUS)

demo: setup  ## three PBXs behind NATs, a hundred calls, an eviction, in network namespaces
	$(VENV)/bin/python -m bench.demo

bench: setup  ## measure against other programs and bare copies, about 15 minutes; FULL=1 for all loads, CHECK=1 to judge
	bench/packages
	$(VENV)/bin/python -m bench $(if $(FULL),--full) $(if $(CHECK),--check)

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf bench/bin bench/results tests/netns/bin
	rm -f tun/*.c tun/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup check check-native fuzz-native test demo bench clean
