"""The house's rules: imports point one way, heavy packages stay in their stage, no drawer for odds and ends."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mechmem

HOUSE = Path(mechmem.__file__).parent
# Leftmost may import everything to its right.
ORDER = [
    "cli",
    "study",
    "report",
    "show",
    "detect",
    "intervene",
    "localize",
    "truth",
    "scan",
    "measure",
    "stats",
    "weights",
    "model",
    "synthetic",
    "data",
]
ONLY_IN = {
    "transformer_lens": {"model"},
    "plotly": {"report", "show"},
    "circuitsvis": {"show"},
    "typer": {"cli"},
    "rich": {"cli"},
}
# Stages of the design that nobody has built yet; an entry here that exists, or any other that does not, is an error.
PLANNED: set[str] = set()
FILES = sorted(HOUSE.rglob("*.py"))


def stage(path: Path, house: Path = HOUSE) -> str:
    return path.relative_to(house).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def broken_rules(path: Path, house: Path = HOUSE) -> list[str]:
    """What is wrong with a file's imports, one sentence each."""
    here = stage(path, house)
    wrong = []
    for name in sorted(imported(path)):
        package, *rest = name.split(".")
        if package == "mechmem" and rest and ORDER.index(rest[0]) < ORDER.index(here):
            wrong.append(f"{here} imports {name}, which is to its left")
        if here not in ONLY_IN.get(package, {here}):
            wrong.append(f"{here} imports {package}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_imports_point_one_way(path):
    if path.parent == HOUSE and path.name == "__init__.py":
        return
    assert not broken_rules(path)


def test_every_stage_is_there_or_planned():
    there = {stage(path) for path in FILES} - {"__init__"}
    assert there == set(ORDER) - PLANNED


def test_the_rule_notices_wrong_imports(tmp_path):
    (tmp_path / "data").mkdir()
    wrong = tmp_path / "data" / "wrong.py"
    wrong.write_text(
        "import transformer_lens.hook_points\nimport mechmem.weights.masks\n"
        "def later():\n    from mechmem.intervene import unlearn\n"
        "from mechmem.data import counts\nimport torch\n"
    )
    assert broken_rules(wrong, tmp_path) == [
        "data imports mechmem.intervene.unlearn, which is to its left",
        "data imports mechmem.weights.masks, which is to its left",
        "data imports transformer_lens",
    ]
    (tmp_path / "cli").mkdir()
    right = tmp_path / "cli" / "right.py"
    right.write_text("import typer\nfrom mechmem.data import counts\nfrom mechmem.model.load import load_model\n")
    assert broken_rules(right, tmp_path) == []
    right.write_text("from . import counts\n")
    with pytest.raises(AssertionError, match="write absolute imports"):
        broken_rules(right, tmp_path)


def test_no_file_is_a_drawer():
    drawers = {"utils.py", "common.py", "types.py", "helpers.py"}
    assert not [path for path in FILES if path.name in drawers]
    long = {str(path.relative_to(HOUSE)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: lines for name, lines in long.items() if lines > 300}


def test_every_public_name_can_be_imported():
    for name in mechmem.__all__:
        assert getattr(mechmem, name) is not None


def test_help_does_not_wait_for_the_model_libraries():
    code = (
        "import sys, mechmem.cli; print([m for m in ('torch', 'transformers', 'transformer_lens') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
