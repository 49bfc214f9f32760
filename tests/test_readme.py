"""The README's example runs as it stands, and its make targets exist."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_notebook_example_runs(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.S)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], str(README), "exec"), {})
    lines = capsys.readouterr().out.replace("held out", "held-out").splitlines()
    em = {line.split()[0]: (float(line.split()[1]), float(line.split()[-1])) for line in lines}
    # As the page says: about 7, and no change elsewhere.
    assert em["targets"][0] == 50 and 4 < em["targets"][1] <= 10
    assert em["held-out"] == (50, 50) and abs(em["keep"][1] - em["keep"][0]) < 0.5
    assert (tmp_path / "edited-model" / "model.safetensors").exists()


def test_the_make_targets_it_names_exist():
    # Its links, files and commands: tests/test_docs.py.
    for target in re.findall(r"^    make (\w+)", README.read_text(), re.M):
        assert re.search(rf"^{target}:", (README.parent / "Makefile").read_text(), re.M)
