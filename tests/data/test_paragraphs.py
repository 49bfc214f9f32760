import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs


def paragraphs(rows: int = 7, length: int = 11, prefix_len: int = 5) -> Paragraphs:
    tokens = torch.arange(rows * length).view(rows, length)
    return Paragraphs(tokens, prefix_len).with_columns(id=np.arange(rows), text=[f"row {i}" for i in range(rows)])


def test_prefix_and_continuation_are_the_whole():
    p = paragraphs()
    assert torch.equal(torch.cat([p.prefix, p.continuation], dim=1), p.tokens)
    assert p.continuation_len == 6


def test_select_takes_table_rows_along_by_mask_and_by_index():
    p = paragraphs()
    by_mask = p.select(np.arange(7) % 3 == 0)
    assert by_mask.column("id").tolist() == [0, 3, 6]
    by_index = p.select(np.array([5, 1]))
    assert by_index.tokens[:, 0].tolist() == [55, 11] and by_index.column("text").tolist() == ["row 5", "row 1"]


@pytest.mark.parametrize("with_table", [True, False])
def test_parquet_round_trip(tmp_path, with_table):
    p = paragraphs() if with_table else Paragraphs(paragraphs().tokens, 5)
    p.save(tmp_path / "p.parquet")
    read = Paragraphs.load(tmp_path / "p.parquet")
    assert torch.equal(read.tokens, p.tokens) and read.prefix_len == 5
    assert (read.table is None) == (not with_table)
    if with_table:
        assert read.column("text").tolist() == p.column("text").tolist()


def test_npy_is_read_with_the_papers_prefix(tmp_path):
    np.save(tmp_path / "p.npy", np.arange(200, dtype=np.int32).reshape(2, 100))
    assert Paragraphs.load(tmp_path / "p.npy").prefix_len == 50


def test_split_by_cluster_shares_no_cluster_and_loses_no_row():
    labels = np.array([0, 0, 1, 2, 2, 2, 3])
    first, second = paragraphs().with_columns(cluster=labels).split_by_cluster(0.5, seed=3)
    assert not set(first.column("cluster")) & set(second.column("cluster"))
    assert sorted([*first.column("id"), *second.column("id")]) == list(range(7))
    assert len(first) >= 4 > 0 < len(second)


@pytest.mark.parametrize(
    ("tokens", "prefix_len", "sentence"),
    [
        (torch.zeros(3, 10), 5, "torch.float32 of shape .3, 10.; wanted integer ids"),
        (torch.zeros(10, dtype=torch.long), 5, "wanted integer ids"),
        (torch.zeros(3, 10, dtype=torch.long), 10, "prefix_len is 10 and paragraphs have 10 tokens"),
        (torch.full((3, 10), -100), 5, "a token id is -100"),
    ],
)
def test_bad_tokens_are_refused(tokens, prefix_len, sentence):
    with pytest.raises(InputError, match=sentence):
        Paragraphs(tokens, prefix_len)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.parquet: no such file"):
        Paragraphs.load(tmp_path / "none.parquet")
    (tmp_path / "p.csv").write_text("1,2")
    with pytest.raises(InputError, match=r"p\.csv: wanted \.parquet"):
        Paragraphs.load(tmp_path / "p.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="not a readable parquet file"):
        Paragraphs.load(tmp_path / "broken.parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "no-tokens.parquet")
    with pytest.raises(InputError, match="wanted 'tokens'"):
        Paragraphs.load(tmp_path / "no-tokens.parquet")
    pq.write_table(pa.table({"tokens": [[1, 2, 3], [1, 2]]}), tmp_path / "ragged.parquet")
    with pytest.raises(InputError, match="rows have 2 different lengths"):
        Paragraphs.load(tmp_path / "ragged.parquet")


def test_a_table_of_another_length_and_an_unknown_column_are_refused():
    p = paragraphs()
    with pytest.raises(InputError, match="the table has 7 rows for 2 paragraphs"):
        Paragraphs(p.tokens[:2], 5, p.table)
    with pytest.raises(InputError, match="no column 'em'; the columns known here are .'id', 'text'."):
        p.column("em")
    with pytest.raises(InputError, match="a mask of 3 values came for 7 paragraphs"):
        p.select(np.array([True, False, True]))
