"""The tutorials run from clean, with the answers to their exercises, and are stored without outputs."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
ANSWER = re.compile(r"^<details><summary>Answer</summary>\n(.*?)^</details>", re.M | re.S)
CODE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
PROGRESS = re.compile(r"\d+%\||\d+/\d+ \[|\d+it ")
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def with_answers(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the code of each answer as a cell behind its exercises."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            cells += [
                nbformat.v4.new_code_cell(code)
                for answer in ANSWER.findall(cell.source)
                for code in CODE.findall(answer)
            ]
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


@every
def test_a_notebook_runs_from_clean(path, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # A bar appears after ten seconds, so it would depend on the machine.
    monkeypatch.setenv("TQDM_DISABLE", "1")
    client = nbclient.NotebookClient(
        with_answers(read(path)), timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    # Not by TCP: two kernels that begin at once may be given one port. A socket's path must be short.
    manager = client.create_kernel_manager()
    manager.transport, manager.ip = "ipc", str(tmp_path_factory.mktemp("k") / "k")
    client.execute()
    said = "".join(
        output.text
        for cell in client.nb.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr"
    )
    # On a slow machine, long work shows its progress.
    assert not [line for line in re.split(r"[\r\n]+", said) if line.strip() and not PROGRESS.search(line)]


@every
def test_a_notebook_is_stored_clean(path):
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count is not None]
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    # What editors add to a cell when they run it does not belong into the repository either.
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


@every
def test_a_notebook_asks_one_question_and_says_what_it_does_not_show(path):
    notebook = read(path)
    first, colab, *_ = notebook.cells
    assert first.source.startswith("# ")
    assert len(re.findall(r"^\*\*Question: .*\?\*\*$", first.source, re.M)) == 1
    assert colab.id == "colab" and '"google.colab" in sys.modules' in colab.source
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "## What was found, and what that does not show" in text
    exercises = re.search(r"^## Exercises\n(.*)", text, re.M | re.S)
    assert exercises
    assert len(ANSWER.findall(exercises[1])) == len(re.findall(r"^\d+\. ", exercises[1], re.M)) >= 2


def test_the_tutorials_are_numbered_without_gaps_in_the_site():
    numbers = [int(path.stem.split("_")[0]) for path in NOTEBOOKS]
    assert numbers == sorted(set(numbers))
