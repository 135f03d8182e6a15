# `make demo` and `make test` each work on a fresh clone: they make the environment they need.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.done
BENCH := $(BIN)/python benchmarks/speed
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# The first Python that is new enough; 3.11 is what constraints.txt was made with.
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && command -v $$p && break; done)
endif
# Holds a lock while a command runs: two makes at once build one environment, one after the other.
# (Python's flock, since macOS has no flock command; a killed build leaves no lock behind.)
LOCKED := import fcntl, os, sys; lock = os.open(".venv.lock", os.O_CREAT | os.O_RDWR); \
	fcntl.flock(lock, fcntl.LOCK_EX); os.set_inheritable(lock, True); \
	os.execvp(sys.argv[1], sys.argv[1:])

.PHONY: demo test check bench clean setup

demo: setup
	$(BIN)/fewmask demo --out demo-run

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup $(TESTS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# About half a day on two free cores; benchmarks/README.md says what each takes.
bench: setup
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[bench]'
	$(BENCH)/views.py
	$(BENCH)/small_maps.py
	$(BENCH)/training_step.py
	$(BENCH)/prediction.py
	$(BENCH)/finetuning.py --rounds 5
	$(BENCH)/finetuning.py --rounds 3 --encoder densenet121
	$(BENCH)/simclr.py --rounds 10
	$(BENCH)/limit.py
	$(BENCH)/startup.py --rounds 3 --at "$${TMPDIR:-/tmp}/fewmask-bench"
	$(BENCH)/study_overhead.py --rounds 3
	$(BENCH)/scaling.py --rounds 3
	$(BENCH)/equivalence.py
	$(BENCH)/time_to_quality.py

setup:
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "error: fewmask needs Python 3.11 or newer; found: $$("$(or $(PYTHON),python3)" -V 2>&1)." \
			"Pass one: make test PYTHON=/path/to/python3.11" >&2; exit 2; }
	+@"$(PYTHON)" -c '$(LOCKED)' $(MAKE) -s --no-print-directory $(STAMP) PYTHON="$(PYTHON)"

# The stamp is written last: an environment half-built is built again.
$(STAMP): pyproject.toml constraints.txt
	@echo "making $(VENV): PyTorch and the rest, a few minutes"
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv.lock demo-run build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
