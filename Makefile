# Two commands on a fresh machine: `make run` and `make test`. Both set up .venv first, and so does `make docs`.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= study
# Two workers of one thread are faster on two cores than one worker of two.
WORKERS ?= 2
# How long `make fuzz` runs.
SECONDS ?= 3600

.PHONY: run test check docs fuzz soak clean

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

# The site, for docs/_site/index.html. Notebooks are executed once and again when they change; any warning is an error.
docs: .venv/ready
	$(BIN)/python -m sphinx -b html -E -W -n --keep-going -q -d docs/_doctrees docs docs/_site

# Other cases every time; failing inputs are left in fuzz-found/.
fuzz: .venv/ready
	$(BIN)/python -m tests.fuzz --new --cases 100000000 --seconds $(SECONDS) --save fuzz-found

# About a quarter of an hour on two cores; needs the right to mount a tmpfs for its full disks.
soak: .venv/ready
	$(BIN)/python -m tests.soak --page docs/reliability.md

clean:
	rm -rf .venv study fuzz-found .pytest_cache .ruff_cache docs/_site docs/_doctrees docs/_executed docs/jupyter_execute docs/api
