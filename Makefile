# Needs only Python 3.11 or later and make: each target brings its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
COVERAGE := --cov --cov-report=term
SITE_BIN := .venv-site/bin
SITE_INSTALLED := .venv-site/.installed
SIDE_BY_SIDE := -n auto --dist loadfile --no-loadscope-reorder

# Compile each module once, not in each of the thousands of processes that the tests start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help check unit demo test test-all test-lightrag test-redis lint types format docs site site-serve clean
.PHONY: bench bench-draining bench-quick bench-page bench-soak bench-installed bench-never-worse
.PHONY: bench-brownouts

help: ## Show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

check: $(INSTALLED) ## Lint, types and unit tests at the same time, in about a minute
	@$(MAKE) --no-print-directory --jobs 3 --output-sync=target lint types unit

unit: $(INSTALLED) ## Run the tests that start no process and no server
	$(BIN)/python -m pytest -q -m unit -n logical --maxprocesses 4 --dist loadfile $(ARGS)

demo: $(INSTALLED) ## A real LightRAG lives through trouble, protected and alone; 80 s
	$(BIN)/lightrag-resilience demo

test: $(INSTALLED) ## Run all tests, with branch coverage, some files at a time
	$(BIN)/python -m pytest $(COVERAGE) $(SIDE_BY_SIDE) $(ARGS)

test-all: ## Run all tests that Python matters to on each one from 3.12 that is here
	@scripts/test-other-pythons $(ARGS)

test-lightrag: ## Run the tests of LightRAG's protection on the last LightRAG 1.4
	@scripts/test-lightrag-1.4 $(ARGS)

test-redis: $(INSTALLED) ## Run the tests of talking to Redis on every major redis-py from 5.0.1 on
	@scripts/test-redis $(ARGS)

lint: $(INSTALLED) ## Check style, and that imports run downwards
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(INSTALLED) ## Check types
	$(BIN)/mypy
	$(BIN)/pyright

format: $(INSTALLED) ## Put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: bench-installed ## All costs beside the peers, and the goals of the design: ten minutes
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: bench-installed ## The same in a minute, and only what a mistake would break
	$(BIN)/python -m benchmarks --quick $(ARGS)

bench-page: ## The same on every Python that is here, written into docs/performance.md
	@scripts/bench-pythons --page $(ARGS)

bench-soak: bench-installed ## Ten minutes of calls, and whether memory stays where it was
	$(BIN)/python -m benchmarks.soak $(ARGS)

bench-installed: $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group bench

bench-draining: $(INSTALLED) ## Requests that fail while Gunicorn replaces its workers: none
	$(BIN)/python -m benchmarks.draining $(ARGS)

bench-never-worse: $(INSTALLED) ## LightRAG alone beside a protected one, through outages: must be no worse
	$(BIN)/python -m benchmarks.never_worse $(ARGS)

bench-brownouts: $(INSTALLED) ## Brownouts and outages under each policy, in virtual time; ARGS=--page writes docs
	$(BIN)/python -m benchmarks.brownout_model $(ARGS)

docs: $(INSTALLED) ## Write variables.md, compatibility.md, .env.example, schema, rules, dashboards anew
	$(BIN)/python -m lightrag_resilience.config.reference > docs/variables.md
	$(BIN)/python -c 'from lightrag_resilience.integrations.lightrag import coverage; \
		print(coverage.compatibility_page(), end="")' > docs/compatibility.md
	$(BIN)/lightrag-resilience config --env-example > .env.example
	$(BIN)/lightrag-resilience config --schema > docs/settings.schema.json
	$(BIN)/python scripts/write_rules.py
	$(BIN)/python scripts/write_dashboards.py

site: $(SITE_INSTALLED) ## Build the documentation into site/; a dead link or a missing page fails
	NO_MKDOCS_2_WARNING=1 $(SITE_BIN)/mkdocs build --strict

site-serve: $(SITE_INSTALLED) ## The same on http://127.0.0.1:8000, built again at each change
	NO_MKDOCS_2_WARNING=1 $(SITE_BIN)/mkdocs serve

clean: ## Remove what the other targets made
	rm -rf $(VENV) .venv-* site demo-output .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	$(call new-venv,$(VENV))
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev --editable '.[demo]'
	@touch $@

$(SITE_INSTALLED): pyproject.toml constraints.txt constraints-site.txt
	$(call new-venv,.venv-site)
	$(SITE_BIN)/python -m pip install --quiet -c constraints.txt -c constraints-site.txt \
		--group site --editable '.[cli]'
	@touch $@

define new-venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "Python's venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
endef
