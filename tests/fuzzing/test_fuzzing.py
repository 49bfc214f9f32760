"""Damaged input is read or refused with one sentence; and the fuzzer that says so would notice if it were not."""

import json
import random
import warnings
from pathlib import Path

import pytest

from tests.fuzzing.byte_mutations import MUTATIONS
from tests.fuzzing.cases import Case
from tests.fuzzing.kinds import KINDS

REGRESSIONS = Path(__file__).parent / "regressions"
BUDGET, CASES = 120, 10_000


def test_ten_thousand_damaged_inputs(python, tmp_path):
    """As many as the time allows on a busy machine; on a quiet core they are all done in it."""
    done = python(
        "-m", "tests.fuzz", "--cases", str(CASES), "--seconds", str(BUDGET), "--json", str(tmp_path / "a.json")
    )
    figures = json.loads((tmp_path / "a.json").read_text())
    assert done.returncode == 0 and not figures["findings"], done.stdout
    assert figures["cases"] > 500, done.stdout


def test_inputs_that_failed_once(python, tmp_path):
    written = tmp_path / "figures.json"
    done = python("-m", "tests.fuzz", "--files", str(REGRESSIONS), "--json", str(written))
    figures = json.loads(written.read_text())
    assert done.returncode == 0 and not figures["findings"], done.stdout
    assert figures["cases"] == len(list(REGRESSIONS.iterdir())) > 50


def test_every_fault_is_found(python):
    answer = python("-m", "tests.fuzzing.faulty_readers")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == {
        "reads": "read",
        "refuses": "refused",
        "throws": "traceback",
        "spins": "too slow",
        "hangs": "hangs",
        "fills_memory": "too much memory",
        "crashes": "crash",
        "exits": "crash",
        "asks_the_network": "traceback",
        "writes_elsewhere": "traceback",
        "removes_elsewhere": "traceback",
        "starts_a_program": "traceback",
        "says_two_lines": "not one sentence",
    }


def test_a_case_is_the_same_again(python):
    """In another process too; hashes of texts differ there."""
    code = "; ".join(
        (
            "import hashlib",
            "from tests.fuzzing.cases import kind_of, make_case",
            "made = [make_case(number) for number in range(60)]",
            "assert [case.kind.name for case in made] == [kind_of(number) for number in range(60)]",
            "print(hashlib.sha256(b' '.join(case.data for case in made)).hexdigest())",
        )
    )
    digests = {python("-c", code).stdout for _ in range(2)}
    assert len(digests) == 1 and digests != {""}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_undamaged_input_is_read(kind, tmp_path):
    """Otherwise every case might be refused for a reason that has nothing to do with its damage."""
    name = kind.candidates()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Case(kind, name, kind.files()[name]).write(tmp_path / "case")
        kind.read(tmp_path / "case")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_mutations_take_any_length(mutation):
    changed = 0
    for length in (0, 1, 2, 3, 100, 5000):
        data = bytes(range(256)) * 20
        for seed in range(20):
            changed += mutation(data[:length], random.Random(seed)) != data[:length]
    assert changed > 20
