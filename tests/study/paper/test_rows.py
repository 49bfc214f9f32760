import json
import math
from typing import Any

import pytest

from mechmem.data.errors import InputError
from mechmem.study.paper.rows import Row, Trap, as_json, from_json, verdict
from mechmem.study.paper.tables import measured, said, table_rows, trap_rows
from mechmem.study.paper.wording import TRAPS


def row(measured=12.0, low: float | None = 11.0, high: float | None = 13.0, published: float | None = 12.19, **more):
    values: dict[str, Any] = {
        "item": "a",
        "quantity": "drop, EM 0-10",
        "reading": "as published",
        "units": "tokens",
    } | more
    return Row(measured=measured, low=low, high=high, published=published, **values)


@pytest.mark.parametrize(
    ("one", "applies", "said"),
    [
        (row(), True, "reproduced"),
        (row(low=12.2), True, "differs"),
        (row(), False, "cannot be said"),
        (row(low=None, high=None), True, "cannot be said"),
        (row(published=None), True, ""),
        # To the published number of decimals.
        (row(measured=12.194, low=None, high=None), True, "reproduced"),
        (row(measured=12.196, low=None, high=None), True, "cannot be said"),
        (row(measured=0.00510004, low=0.0051001, high=0.0052, published=5.10e-3), True, "reproduced"),
        (row(measured=441.0, low=None, high=None, published=442.0), True, "cannot be said"),
        (row(measured=math.nan), True, "cannot be said"),
        (row(low=math.nan), True, "cannot be said"),
    ],
)
def test_a_verdict(one, applies, said):
    assert verdict(one, applies) == said


def test_rows_and_traps_come_back_from_json(tmp_path):
    rows = row(), row(measured=math.nan, low=None, high=None, published=None, note="why")
    traps = (Trap(3, "skips", 1.0, math.nan, "nats", "It changes this."),)
    text = json.dumps(as_json(rows, traps), allow_nan=False)
    again, same = from_json(json.loads(text), tmp_path)
    assert again[0] == rows[0] and math.isnan(again[1].measured) and again[1].note == "why"
    assert same[0].slipped == 1.0 and math.isnan(same[0].corrected)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ({"rows": 3}, "'rows' is a int"),
        ({"traps": [[]]}, "got a list"),
        ({"rows": [{"item": "a"}]}, "has no 'quantity'"),
        ({"rows": [as_json((row(),), ())["rows"][0] | {"reading": "x"}]}, "got the reading 'x'"),
        ({"rows": [as_json((row(),), ())["rows"][0] | {"low": "x"}]}, "'low' is a str"),
    ],
)
def test_other_json_is_refused(tmp_path, damage, sentence):
    with pytest.raises(InputError, match=sentence):
        from_json(as_json((row(),), ()) | damage, tmp_path)


def test_a_table_has_both_readings_of_a_quantity_on_one_line():
    rows = [row(note="one"), row(measured=-3.0, low=None, high=None, reading="corrected", note="two")]
    (line,) = table_rows(rows, applies=True)
    assert line == ["drop, EM 0–10 (tokens)", "12.19", "12 [11, 13]", "reproduced", "−3", "cannot be said", "one; two"]
    assert table_rows([row(units="1", quantity="q")], applies=True)[0][4:6] == ["–", ""]


def test_every_trap_has_a_line_measured_or_not():
    trap = Trap(4, "own title", 8.4, 0.93, "nats", "It changes this.")
    lines = trap_rows([trap], {"head": "there are no heads"})
    assert [line[0] for line in lines] == list(range(1, 15)) == list(TRAPS)
    assert lines[3] == [4, "own title", "8.40", "0.93", "nats", "It changes this."]
    assert lines[6][-1] == "Not measured: there are no heads."


def test_numbers_are_said_as_people_write_them():
    assert [said(x) for x in (12422.0, 0.5, 0.0326, -1.5, math.nan)] == ["12,422", "0.50", "0.0326", "−1.50", "–"]
    assert measured(row(low=None, high=None)) == "12"
