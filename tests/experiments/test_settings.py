"""Every script's settings are its command line."""

import dataclasses
import re
from pathlib import Path

import docstring_parser
import pytest
import tyro

from mechmem.data.bounds import annotations_of
from mechmem.data.errors import InputError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SCRIPTS = sorted(
    str(path.relative_to(EXPERIMENTS).with_suffix(""))
    for path in [
        *EXPERIMENTS.glob("*.py"),
        *(EXPERIMENTS / f"benchmarks/{name}.py" for name in ("attention", "capture", "intervene")),
    ]
    if "__main__" in path.read_text(encoding="utf-8")
)
# Their model is planted, random or trained by themselves.
OWN_MODEL = {
    "detection",
    "head_report",
    "ladder",
    "ladder_measure",
    "ladder_page",
    "ladder_transplant",
    "ladder_unlearning",
    "ladder_where",
    "measure_bundled",
    "oracle_training",
    "planted",
    "train_bundled",
    "benchmarks/attention",
    "benchmarks/capture",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_setting_is_an_option_with_its_default_and_its_meaning(script, capsys, name):
    module = script(name)
    assert module.Settings.__dataclass_params__.frozen
    assert tyro.cli(module.Settings, args=[]) == module.Settings()
    with pytest.raises(SystemExit):
        tyro.cli(module.Settings, args=["--help"], description=module.__doc__)
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert module.__doc__.splitlines()[0] in shown
    meanings = {
        meaning.arg_name: " ".join((meaning.description or "").split())
        for base in module.Settings.__mro__[:-1]
        for meaning in docstring_parser.parse(base.__doc__).params
    }
    assert set(module.Settings.__dataclass_fields__) == set(meanings)
    for field, meaning in meanings.items():
        assert meaning.split("; ")[0].split(", ")[0][:20] in shown, f"the help does not say what {field} means"
    if name not in OWN_MODEL and not name.startswith("benchmarks"):
        assert tyro.cli(module.Settings, args=["--model", "m", "--corpus", "c"]) == module.Settings(
            model="m", corpus="c"
        )


def test_settings_of_another_run_are_refused(script, tmp_path):
    outputs, module = script("outputs"), script("planted")
    outputs.agree_on_settings(tmp_path, module.Settings(), free=("page",))
    outputs.agree_on_settings(tmp_path, module.Settings(page=None), free=("page",))
    with pytest.raises(InputError, match=r"seeds was .*, fraction was 0.001, now 0.5\); choose another folder"):
        outputs.agree_on_settings(tmp_path, module.Settings(fraction=0.5, seeds=(7,)), free=("page",))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_of_the_settings_has_bounds(script, name):
    module = script(name)
    for field, annotation in annotations_of(module.Settings).items():
        default = getattr(module.Settings(), field)
        if not re.search(r"\b(int|float)\b", str(annotation)):
            continue
        for wrong in (-1, float("nan"), float("inf"), True, 2**70, "5"):
            if wrong == 2**70 and "float" in str(annotation):
                continue
            value = (wrong,) * max(1, len(default)) if isinstance(default, tuple) else wrong
            with pytest.raises(InputError, match=rf" as {field}.*; need"):
                dataclasses.replace(module.Settings(), **{field: value})
