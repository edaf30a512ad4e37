# Every target sets up what it needs, in .venv, once. `make PYTHON=python3.12 test` picks the Python.
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers

PY := $(VENV)/bin/python
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: venv demo test check docs bench bench-full bench-peers bench-core clean

venv: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "countvae needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv "$(VENV)"
	"$(PY)" $(PIP) -c constraints.txt -e ".[fast,test,check]"
	@touch "$@"

$(VENV)/.stamp-docs: $(VENV)/.stamp
	"$(PY)" $(PIP) -c constraints.txt -e ".[docs]"
	@touch "$@"

demo: venv
	"$(PY)" -m countvae demo -o demo --force

test: venv
	"$(PY)" -m pytest

check: venv
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(VENV)/bin/lint-imports"
	"$(PY)" -m basedpyright --pythonpath "$(PY)"

docs: $(VENV)/.stamp-docs
	"$(PY)" -m sphinx -W --keep-going -b html docs docs/_build

# The simulations: every figure and table in about 15 minutes, or the whole grid in hours.
RESULTS := benchmarks/simulations/results

bench: venv
	COUNTVAE_PEERS="$(PEERS)/bin/python" "$(PY)" -m countvae benchmark -o $(RESULTS) --page docs/benchmarks.md

bench-full: venv
	COUNTVAE_PEERS="$(PEERS)/bin/python" "$(PY)" -m countvae benchmark --full -o $(RESULTS) --page docs/benchmarks.md

# What the core must show, a script a claim; all of them take long. `make bench-recovery` runs one.
BENCH_CORE := recovery cold_start solver real_tables robustness choices

bench-core: $(BENCH_CORE:%=bench-%)

.PHONY: $(BENCH_CORE:%=bench-%)
$(BENCH_CORE:%=bench-%): bench-%: venv
	COUNTVAE_PEERS="$(PEERS)/bin/python" "$(PY)" -m benchmarks.core.$*

# What scale must show, a script a claim, on a machine that does nothing else.
BENCH_PERFORMANCE := peers convergence growth streaming processes memory step

bench-performance: $(BENCH_PERFORMANCE:%=bench-performance-%)
	"$(PY)" -m benchmarks.performance.page

.PHONY: bench-performance $(BENCH_PERFORMANCE:%=bench-performance-%)
$(BENCH_PERFORMANCE:%=bench-performance-%): bench-performance-%: venv
	COUNTVAE_PEERS="$(PEERS)/bin/python" "$(PY)" -m benchmarks.performance.$*

# What people take home, a script a claim.
BENCH_TAKEHOME := network select score subcomposition finetune

bench-takehome: $(BENCH_TAKEHOME:%=bench-takehome-%)

.PHONY: bench-takehome $(BENCH_TAKEHOME:%=bench-takehome-%)
$(BENCH_TAKEHOME:%=bench-takehome-%): bench-takehome-%: venv
	COUNTVAE_PEERS="$(PEERS)/bin/python" "$(PY)" -m benchmarks.takehome.$*

# The peers need packages that countvae must not, so they live in an environment of their own.
bench-peers: $(PEERS)/.stamp

$(PEERS)/.stamp: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv "$(PEERS)"
	"$(PEERS)/bin/python" $(PIP) -c $< torch numpy Cython setuptools wheel
	"$(PEERS)/bin/python" $(PIP) --no-build-isolation -r $<
	@touch "$@"

clean:
	rm -rf demo build dist docs/_build docs/generated docs/jupyter_execute
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache
