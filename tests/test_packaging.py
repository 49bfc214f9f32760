"""What is imported when, and what a wheel holds."""

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mechmem

ROOT = Path(__file__).parents[1]

HEAVY = ("torch", "transformers", "transformer_lens", "datasets", "pandas")


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_completing_public_names_imports_nothing_heavy():
    code = (
        "import sys, rlcompleter, mechmem\n"
        "found = rlcompleter.Completer({'mm': mechmem}).attr_matches('mm.')\n"
        "missing = {f'mm.{name}' for name in mechmem.__all__} - {name.rstrip('(') for name in found}\n"
        f"print(sorted(missing), [name for name in {HEAVY} if name in sys.modules])"
    )
    assert python(code) == "[] []"


def test_names_are_properties_until_they_are_used():
    """Completers, jedi among them, do not evaluate properties; once used, a name is found without one."""
    code = (
        "import inspect, mechmem\n"
        "static = lambda name: type(inspect.getattr_static(mechmem, name)).__name__\n"
        "before = {static(name) for name in mechmem.__all__}\n"
        "mechmem.WindowSettings\n"
        "print(before, static('WindowSettings'), mechmem.WindowSettings is mechmem.data.windows.WindowSettings)"
    )
    assert python(code) == "{'property'} type True"


def test_a_function_named_like_a_folder_stays_a_function():
    code = (
        "import mechmem.scan.scan_settings, mechmem\n"
        "import mechmem.scan.scan\n"
        "print(type(mechmem.scan).__name__, mechmem.scan.__module__, type(vars(mechmem)['scan']).__name__)"
    )
    assert python(code) == "function mechmem.scan.scan function"


def test_a_name_can_be_replaced_and_an_unknown_one_is_an_attribute_error(monkeypatch):
    monkeypatch.setattr(mechmem, "score", len)
    assert mechmem.score is len
    monkeypatch.undo()
    assert inspect.isfunction(mechmem.score)
    assert not hasattr(mechmem, "scores")


def test_every_requirement_and_extra_has_a_tested_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {"ray", "notebook", "docs", "dev"}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    tested = {canonicalize_name(name): version for name, version in pins.items()}
    for text in [*project["dependencies"], *(text for extra in extras.values() for text in extra)]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            assert requirement.extras <= set(extras)
        else:
            assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), text
