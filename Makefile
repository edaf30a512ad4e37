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
	"$(PY)" -m pytest -n auto --maxprocesses 4 --dist worksteal

check: venv
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(VENV)/bin/lint-imports"
	"$(PY)" -m basedpyright --pythonpath "$(PY)"

docs: $(VENV)/.stamp-docs
	"$(PY)" docs/make_errors.py
	"$(PY)" -m sphinx -W --keep-going -b html docs docs/_build

# The simulations: every figure and table in about 15 minutes, or the whole grid in hours.
RESULTS := benchmarks/simulations/results

# What needs the peers' environment (`make bench-peers`) is left out where there is none.
bench: venv
	COUNTVAE_PEERS="$(PEERS)/bin/python" "$(PY)" -m countvae benchmark -o benchmark --page benchmark/benchmarks.md

bench-full: venv bench-peers
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
BENCH_TAKEHOME := network select select_real score subcomposition finetune covariates

bench-takehome: $(BENCH_TAKEHOME:%=bench-takehome-%)

.PHONY: bench-takehome $(BENCH_TAKEHOME:%=bench-takehome-%)
$(BENCH_TAKEHOME:%=bench-takehome-%): bench-takehome-%: venv
	COUNTVAE_PEERS="$(PEERS)/bin/python" "$(PY)" -m benchmarks.takehome.$*

# Models of images, a script a claim, then the page of them.
BENCH_IMAGES := bounds few denoise anomaly compress transfer tree pictures

bench-images: $(BENCH_IMAGES:%=bench-images-%)
	"$(PY)" -m benchmarks.images.page

.PHONY: bench-images $(BENCH_IMAGES:%=bench-images-%)
$(BENCH_IMAGES:%=bench-images-%): bench-images-%: venv
	"$(PY)" -m benchmarks.images.$*

# What is put in its way: faults, stops, bad files, the same again; the table is printed at the end.
BENCH_RELIABILITY := faults kills repeats models

# Each goes on whatever another finds; the page is written of all, and the end is 1 if there is a finding.
reliability: venv
	$(MAKE) --keep-going fuzz $(BENCH_RELIABILITY:%=bench-reliability-%); found=$$?; \
		"$(PY)" -m benchmarks.reliability.page && exit $$found

fuzz: venv
	"$(PY)" -m benchmarks.reliability.hostile

.PHONY: reliability fuzz $(BENCH_RELIABILITY:%=bench-reliability-%)
$(BENCH_RELIABILITY:%=bench-reliability-%): bench-reliability-%: venv
	"$(PY)" -m benchmarks.reliability.$*

# The tests with the oldest versions that are allowed, and with the newest; torch is that of constraints.txt.
# Without checks of shapes: jaxtyping before 0.3.11 wraps what numba compiles.
TORCH := $(shell grep '^torch==' constraints.txt)

oldest newest: %: .venv-%/.stamp
	.venv-$*/bin/python -m pytest -W default -o addopts=--doctest-modules -n auto --maxprocesses 4 --dist worksteal

.venv-oldest/.stamp .venv-newest/.stamp: .venv-%/.stamp: pyproject.toml
	$(PYTHON) -m venv ".venv-$*"
	".venv-$*/bin/python" $(PIP) uv $(TORCH)
	".venv-$*/bin/uv" pip install --quiet --python ".venv-$*" \
		--resolution $(if $(filter oldest,$*),lowest-direct,highest) $(TORCH) -e ".[fast,test]"
	@touch "$@"

# Installed beside scanpy and scvi-tools, all three work.
beside:
	$(PYTHON) -m venv .venv-beside
	.venv-beside/bin/python $(PIP) $(TORCH) . scanpy scvi-tools
	.venv-beside/bin/python -m pip check
	.venv-beside/bin/python -c "import scanpy, scvi, countvae.tl"
	.venv-beside/bin/python -m countvae demo -o .venv-beside/demo --force

# What is known against the versions of constraints.txt.
audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python $(PIP) pip-audit
	.venv-audit/bin/pip-audit --no-deps --disable-pip -r constraints.txt

.PHONY: oldest newest beside audit

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
