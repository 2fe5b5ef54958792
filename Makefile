# SPDX-License-Identifier: GPL-2.0-only
# Everything happens in .venv, which any target makes if it is missing: nothing is installed by hand.
#
# KVMMU_PURE=1 make TARGET   the interpreted build: needs neither a compiler nor headers, and is about 100 times slower
# PYTHON=python3.12 make ... another interpreter (constraints.txt is for 3.11)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

PURE    := $(filter-out 0,$(KVMMU_PURE))
ROOMS   := $(shell find src -name '*.py' -o -name '*.pxd' 2>/dev/null)
BUILT   := $(if $(PURE),$(VENV)/.installed,$(VENV)/.built)
REQUIRE := $(if $(PURE),,KVMMU_REQUIRE_COMPILED=1)
XDIST   := -n 2 --dist loadgroup
PYTEST  := $(REQUIRE) $(BIN)/python -m pytest $(XDIST)

.DEFAULT_GOAL := help
.PHONY: help build run test test-pure lint bench explore fuzz record-smoke guests oracle clean

help:   ## print this list
	@sed -n 's/^\([a-z-]*\): .*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null || \
	 sed -n 's/^\([a-z-]*\): .*## \(.*\)/  make \1: \2/p' $(MAKEFILE_LIST)

build: $(BUILT) ## make .venv, install, compile the rooms

run: $(BUILT) ## replay the bundled boot and verify it (ARGS=... for more)
	$(SAY) "running kvmmu run $(ARGS)"
	@$(BIN)/kvmmu run $(ARGS)

test: $(BUILT) ## compile, and run the test suite on the compiled build
	$(PYTEST) -m "not deep" $(ARGS)

test-pure: $(VENV)/.installed ## run the quick tests on the interpreted build
	KVMMU_PURE=1 $(BIN)/python -m pytest $(XDIST) -m "not slow and not deep" $(ARGS)

lint: $(VENV)/.installed ## ruff, mypy, cython-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint src

bench: $(BUILT) ## measure what README claims
	$(REQUIRE) $(BIN)/python -m benchmarks $(ARGS)

explore: $(BUILT) ## the enumerations and long state machines that are not in make test
	HYPOTHESIS_PROFILE=deep $(PYTEST) -m deep $(ARGS)

fuzz: $(BUILT) ## 20,000 wrong recordings through every command (KVMMU_MUTANTS=N for another number)
	$(PYTEST) -m deep tests/record/test_mutants.py $(ARGS)

record-smoke: $(BUILT) ## record a tiny guest with QEMU >= 10, and replay it
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/record_smoke.sh

guests: $(BUILT) ## record firmware, hypervisors, kernels from Debian's packages with QEMU >= 10, and replay them
	PATH="$(CURDIR)/$(BIN):$$PATH" python3 tools/guests/guests.py out/guests $(ARGS)

oracle: $(BUILT) ## record real KVM with fresh random scenarios, and compare (needs Debian's packages; ARGS="FAMILY... --seeds A-B")
	rm -rf out/oracle/scenarios out/oracle/recordings
	python3 tools/oracle/scenarios.py out/oracle/scenarios $(or $(ARGS),random wild huge dirty --seeds 0-1)
	python3 tools/oracle/record.py out/oracle/scenarios out/oracle/recordings
	$(BIN)/kvmmu conformance out/oracle/recordings

clean:  ## remove what make made
	rm -rf $(VENV) build dist out src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src -name '*.so' -delete
	rm -f src/kvmmu/_build_note.txt
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each step says what it is about on standard error, so that `make run ARGS=--json` can be read by a program.
# A stamp is made when its step has succeeded: an interrupted step is done again, and goes on where it was.
SAY   := @printf "kvmmu: %s\n" >&2
CHECK := @PYTHON="$(PYTHON)" PURE="$(PURE)" sh tools/check_machine.sh
PIP   := -m pip install -q --disable-pip-version-check -c constraints.txt

# Installed: the tools and kvmmu itself, editable and not yet compiled.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(CHECK)
	$(SAY) "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	$(SAY) "installing Python packages into it (under a minute)"
	@$(BIN)/python $(PIP) setuptools wheel Cython
	@KVMMU_PURE=1 KVMMU_REQUIRE_COMPILED= $(BIN)/python $(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

# Built: the compiled rooms lie beside their sources.
$(VENV)/.built: $(VENV)/.installed build_ext.py setup.py $(ROOMS)
	$(CHECK)
	$(SAY) "compiling the rooms that changed (all of them: about a minute on two cores)"
	@KVMMU_REQUIRE_COMPILED=1 $(BIN)/python setup.py -q build_ext --inplace
	@touch $@
