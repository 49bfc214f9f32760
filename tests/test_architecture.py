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
    "plotly": {"report"},
    "circuitsvis": {"report"},
    "typer": {"cli"},
    "rich": {"cli"},
}
FILES = sorted(HOUSE.rglob("*.py"))


def stage(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_imports_point_one_way(path):
    if path.parent == HOUSE and path.name == "__init__.py":
        return
    here = ORDER.index(stage(path))
    for name in imported(path):
        if name.startswith("mechmem."):
            assert ORDER.index(name.split(".")[1]) >= here, f"{path.name} imports {name}, which is to its left"
        package = name.split(".")[0]
        assert stage(path) in ONLY_IN.get(package, {stage(path)}), f"{path.name} imports {package}"


def test_the_rule_would_notice_a_wrong_import(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import transformer_lens.hook_points\nfrom mechmem.intervene import masks\n")
    assert imported(wrong) == {"transformer_lens.hook_points", "mechmem.intervene.masks"}
    assert ORDER.index("intervene") < ORDER.index("data")


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
