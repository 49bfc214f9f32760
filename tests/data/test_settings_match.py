from typing import Any

import pytest

from mechmem.data.errors import InputError
from mechmem.data.settings_match import refuse_other_settings

SETTINGS: dict[str, Any] = {"seed": 0, "windows": {"stride": 50, "seed": 3}, "keywords": ["a"], "run": None}


def test_equal_settings_are_accepted_whatever_their_order_and_kind_of_sequence():
    refuse_other_settings("f", SETTINGS, SETTINGS, advice="x")
    turned = {name: SETTINGS[name] for name in reversed(SETTINGS)} | {"keywords": ("a",)}
    refuse_other_settings("f", SETTINGS, turned, advice="x")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"run": 2}, r"run was None, now 2\); choose"),
        ({"windows": {"stride": 100, "seed": 3}}, r"stride was 50, now 100\)"),
        ({"windows": {"stride": 50, "seed": 4}}, r"windows.seed was 3, now 4\)"),
        ({"seed": 1, "keywords": []}, r"seed was 0, now 1, keywords was \['a'\], now \[\]"),
        ({"new": 5}, r"new was None, now 5\)"),
    ],
)
def test_every_difference_is_named_with_both_values(changed, sentence):
    with pytest.raises(InputError, match=rf"^f: was begun with other settings \({sentence}"):
        refuse_other_settings("f", SETTINGS, SETTINGS | changed, advice="choose another")


def test_a_setting_that_is_gone_is_a_difference():
    with pytest.raises(InputError, match="seed was 0, now None"):
        refuse_other_settings("f", {"seed": 0, "run": 1}, {"run": 1}, advice="choose another")
