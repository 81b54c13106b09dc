# `make` lists the targets. Needs python3 (3.11 or later) and nothing else; all tools go to .venv.

BIN := .venv/bin
STAMP := .venv/.installed
PYTHONS := $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11
BENCHMARKS := canvas claim drain enqueue flow latency schedules startup unique

# Tests start hundreds of programs: without byte code on disk each compiles all of pgtasks first, 0.6 s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv demo test chaos chaos-long lint types layers bench coverage check

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(STAMP) ## make .venv and install pgtasks with its tools
	@:

demo: $(STAMP) ## see it work: a private PostgreSQL, a worker, a few jobs
	@$(BIN)/pgtasks demo

test: $(STAMP) ## the quick suite: everything but chaos and slow
	@$(BIN)/python -m pytest -n 2 -m "not chaos and not slow"

chaos: $(STAMP) ## kill -9, cut connections, restarted servers, full disks; and slow tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "(chaos or slow) and not long"

chaos-long: $(STAMP) ## the same, larger (PGTASKS_CHAOS_SCALE=20), and what waits for real time-outs
	@PGTASKS_CHAOS_SCALE=$${PGTASKS_CHAOS_SCALE:-20} $(BIN)/python -m pytest -n 2 --dist loadfile \
		-o faulthandler_timeout=900 -m "chaos or slow"

lint: $(STAMP) ## ruff: lint and format
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .

types: $(STAMP) ## mypy
	@$(BIN)/mypy

layers: $(STAMP) ## import-linter: who may import whom
	@$(BIN)/lint-imports --no-logo

bench: $(STAMP) ## the benchmarks; one of them: make bench BENCHMARKS=claim
	@set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done

coverage: $(STAMP) ## the quick suite again, with what it did not reach
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n 2 -m "not chaos and not slow"
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

check: lint types layers test chaos ## all of it

# A venv without pip is what a failed or interrupted `python -m venv` leaves: start again.
$(STAMP): pyproject.toml
	@set -eu; \
	if ! [ -x $(BIN)/pip ]; then \
		found=; \
		for python in $(PYTHONS); do \
			if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
				found=$$python; break; \
			fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "pgtasks needs Python 3.11 or later, found $$(python3 --version 2>/dev/null || echo none):" \
				"install one, or say where it is: make venv PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		if ! $$found -c 'import ensurepip, venv' 2>/dev/null; then \
			echo "$$found cannot make a venv, its ensurepip is missing:" \
				"run 'apt install python3-venv'" >&2; \
			exit 1; \
		fi; \
		echo "making .venv with $$($$found --version)"; \
		$$found -m venv --clear .venv; \
	fi; \
	echo "installing pgtasks and its tools"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
