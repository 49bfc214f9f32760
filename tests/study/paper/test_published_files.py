import numpy as np
import pytest

from mechmem.data.errors import InputError
from mechmem.study.paper.published_files import holds_published_files, read_published_files


def test_the_files_are_read_as_they_are(published_folder):
    folder = published_folder()
    files = read_published_files(folder)
    assert holds_published_files(folder) and len(files.memorized) == 12
    assert {name: len(rows) for name, rows in files.own_text.items()} == {"30-49": 4, "11-29": 6}
    assert files.memorized.prefix_len == 50 and files.memorized.column("text")[1] == "line one\r\nline 1"
    assert files.memorized.column("count")[2] == 5 and (files.memorized.column("published_nll") == 0.25).all()
    assert files.pairs is not None
    clean, corrupt = files.pairs
    assert (clean.column("perturbed_pos") == 7).all() and (corrupt.column("impact_pos") == 60).all()


def test_all_but_the_memorized_paragraphs_may_be_missing(published_folder):
    folder = published_folder(em30_49=None, em11_29=None, pairs_memorized=None, pairs_perturbed=None)
    (folder / "memorized.csv").unlink()
    files = read_published_files(folder)
    assert not files.own_text and files.pairs is None and not files.memorized.has("text")
    assert not holds_published_files(folder.parent) and not holds_published_files(None)


ROWS = np.zeros((3, 100), dtype=np.int32)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"em50": ROWS[:, :99]}, r"em50.npy: got shape \[3, 99\]; need ids \[paragraph, 100\]: download"),
        ({"em50": ROWS[:0]}, r"got shape \[0, 100\]"),
        ({"em30_49": ROWS - 1}, "got ids from -1 to -1; need ids from 0 to 50256"),
        ({"em11_29": ROWS + 50_257}, "em11_29.npy: got ids from 50257"),
        ({"em50": ROWS.astype(float)}, "em50.npy: got float64"),
        ({"em50": ROWS}, "memorized.csv: got 12 rows; need 3"),
        ({"pairs_memorized": None}, "holds pairs_perturbed.npy without pairs_memorized.npy"),
        ({"pairs_perturbed": ROWS}, "pairs_perturbed.npy: got clean"),
        ({"pairs_memorized": ROWS, "pairs_perturbed": ROWS}, "got pair 0 with 0 prefix tokens that differ"),
    ],
)
def test_other_shapes_are_refused(published_folder, changed, sentence):
    with pytest.raises(InputError, match=sentence):
        read_published_files(published_folder(**changed))


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("paragraph,id\r\na,1\r\n", "has no column 'count'; need paragraph, id, count, em, nll"),
        ("paragraph,id,count,em,nll\r\n" + "a,1,2,x,4\r\n" * 12, "count, em or nll is not a number"),
        ("paragraph,id,count,em,nll\r\n" + "a,1,2,nan,4\r\n" * 12, "not a number"),
        ("paragraph,id,count,em,nll\r\n" + "a\r\n" * 12, "not a number"),
    ],
)
def test_other_tables_are_refused(published_folder, table, sentence):
    folder = published_folder()
    (folder / "memorized.csv").write_text(table, newline="")
    with pytest.raises(InputError, match=sentence):
        read_published_files(folder)
    (folder / "memorized.csv").write_bytes(b"\xff\xfe\0")
    with pytest.raises(InputError, match="not readable as CSV"):
        read_published_files(folder)
