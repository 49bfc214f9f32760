import json
from pathlib import Path

import pytest

from mechmem.data.errors import InputError
from mechmem.data.stored_json import check_types, read_object


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not readable as JSON"),
        (b'{"a": 1', "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b"[1]", "holds a list; need a JSON object"),
        (b"null", "holds a NoneType"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not readable as JSON"),
        (b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_object_of_ours_is_one_sentence(tmp_path, content, sentence):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=sentence) as caught:
        read_object(tmp_path / "a.json", advice="write it again")
    assert "write it again" in str(caught.value) and "\n" not in str(caught.value)


def test_an_object_is_read(tmp_path):
    values = {"a": [{"b": [{"c": 1.5}]}], "d": None}
    (tmp_path / "a.json").write_text(json.dumps(values))
    assert read_object(tmp_path / "a.json", advice="") == values


def test_missing_names_and_other_types_are_named():
    check_types({"a": 1, "b": "x", "c": 3}, {"a": int, "b": (str, float)}, Path("f"), advice="no")
    for values, sentence in (({}, "f: has no 'a'"), ({"a": "1"}, "'a' is a str"), ({"a": True}, "'a' is a bool")):
        with pytest.raises(InputError, match=sentence):
            check_types(values, {"a": int}, Path("f"), advice="no")
