# Two commands on a fresh machine: `make run` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= study
# Two workers of one thread are faster on two cores than one worker of two.
WORKERS ?= 2

.PHONY: run test check clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch .venv/ready

run: .venv/ready
	$(BIN)/mechmem run --out $(OUT)

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf .venv study .pytest_cache .ruff_cache
