import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mechmem.data import paragraph_files
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
        (torch.zeros(3, 10), 5, "torch.float32 with shape .3, 10.; need integer ids"),
        (torch.zeros(10, dtype=torch.long), 5, "need integer ids"),
        (torch.zeros(3, 10, dtype=torch.long), 10, "got prefix_len 10 for paragraphs of 10 tokens"),
        (torch.full((3, 10), -100), 5, "got the token id -100"),
    ],
)
def test_bad_tokens_are_refused(tokens, prefix_len, sentence):
    with pytest.raises(InputError, match=sentence):
        Paragraphs(tokens, prefix_len)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.parquet: no such file"):
        Paragraphs.load(tmp_path / "none.parquet")
    (tmp_path / "p.csv").write_text("1,2")
    with pytest.raises(InputError, match=r"p\.csv: need \.parquet"):
        Paragraphs.load(tmp_path / "p.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="not a readable parquet file"):
        Paragraphs.load(tmp_path / "broken.parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "no-tokens.parquet")
    with pytest.raises(InputError, match="need 'tokens'"):
        Paragraphs.load(tmp_path / "no-tokens.parquet")
    pq.write_table(pa.table({"tokens": [[1, 2, 3], [1, 2]]}), tmp_path / "ragged.parquet")
    with pytest.raises(InputError, match="rows have 2 different lengths"):
        Paragraphs.load(tmp_path / "ragged.parquet")


def test_a_table_of_another_length_and_an_unknown_column_are_refused():
    p = paragraphs()
    with pytest.raises(InputError, match="got a table of 7 rows for 2 paragraphs"):
        Paragraphs(p.tokens[:2], 5, p.table)
    with pytest.raises(InputError, match="no column 'em'; the columns known here are .'id', 'text'."):
        p.column("em")
    with pytest.raises(InputError, match="got a mask of shape .3. for 7 paragraphs"):
        p.select(np.array([True, False, True]))


def test_rows_chosen_out_of_order_are_saved_and_widened_as_chosen(tmp_path):
    """`select` of a dataset leaves all rows in the table below: they must not come back."""
    p = paragraphs().select([5, 1, 3])
    widened = p.with_columns(
        em=np.array([1, 2, 3], dtype=np.int32), half=np.array([0.5, 1, 2], np.float32), pair=[[1, 2]] * 3
    )
    widened.save(tmp_path / "p.parquet")
    for q in (widened, Paragraphs.load(tmp_path / "p.parquet")):
        assert q.column("id").tolist() == [5, 1, 3] and q.column("text").tolist() == ["row 5", "row 1", "row 3"]
        assert q.column("em").tolist() == [1, 2, 3] and q.column("pair").tolist() == [[1, 2]] * 3
        assert q.table is not None and q.table.features["half"].dtype == "float64"
        assert q.tokens[:, 0].tolist() == [55, 11, 33]


def test_saving_in_chunks_and_loading_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(paragraph_files, "ROWS", 2)
    p = paragraphs()
    p.save(tmp_path / "whole.parquet")
    assert torch.equal(Paragraphs.load(tmp_path / "whole.parquet").tokens, p.tokens)
    for name, rows in (("b", [4, 5, 6]), ("a", [0, 1, 2, 3]), ("c", [])):
        p.select(np.array(rows, dtype=int)).save(tmp_path / "parts" / f"{name}.parquet")
    (tmp_path / "parts" / "_SUCCESS").write_text("")
    read = Paragraphs.load(tmp_path / "parts")
    assert torch.equal(read.tokens, p.tokens) and read.prefix_len == 5
    assert read.column("text").tolist() == p.column("text").tolist()


def test_no_rows_make_a_round_trip(tmp_path):
    none = paragraphs().select(np.zeros(7, dtype=bool))
    none.save(tmp_path / "p.parquet")
    read = Paragraphs.load(tmp_path / "p.parquet")
    assert len(read) == 0 and read.prefix_len == 5 and read.with_columns(em=[]).column("em").shape == (0,)


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed", "uint16", "sliced"])
def test_every_kind_of_list_column_is_read(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    types = {"large_list": pa.large_list(pa.int64()), "fixed": pa.list_(pa.int32(), 3), "uint16": pa.list_(pa.uint16())}
    column = pa.array(rows, types.get(kind, pa.list_(pa.int64())))
    column = pa.chunked_array([column[1:], column[:1]]) if kind == "sliced" else column
    pq.write_table(pa.table({"tokens": column}), tmp_path / "p.parquet")
    expected = [*rows[1:], rows[0]] if kind == "sliced" else rows
    assert Paragraphs.load(tmp_path / "p.parquet", prefix_len=1).tokens.tolist() == expected


def test_bad_parquet_columns_and_parts_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def refused(sentence: str, *columns: dict) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for number, column in enumerate(columns):
            pq.write_table(pa.table(column), folder / f"{number}.parquet")
        with pytest.raises(InputError, match=sentence):
            Paragraphs.load(folder, prefix_len=1)

    refused("this folder holds no .parquet file")
    refused(r"got 'tokens' as list<element: double>; need a list of integer ids", {"tokens": [[1.5, 2.0]]})
    refused("got 'tokens' as string", {"tokens": ["1 2"]})
    refused("an id in 'tokens' is null", {"tokens": [[1, None]]})
    refused("rows have 2 different lengths", {"tokens": [[1, 2], None]})
    refused("rows have 2 different lengths", {"tokens": [[1, 2]]}, {"tokens": [[1, 2, 3]]})
    refused("the parts' columns differ", {"tokens": [[1, 2]], "em": [1]}, {"tokens": [[1, 2]]})
    refused("1.parquet: got columns .'em'.; need 'tokens'", {"tokens": [[1, 2]]}, {"em": [1]})


def test_parts_with_two_prefixes_are_refused_unless_one_is_named(tmp_path):
    tokens = paragraphs().tokens
    Paragraphs(tokens, 5).save(tmp_path / "a.parquet")
    Paragraphs(tokens, 6).save(tmp_path / "b.parquet")
    with pytest.raises(InputError, match="the parts name prefix_len .*5.*6.*; need one: name it"):
        Paragraphs.load(tmp_path)
    assert Paragraphs.load(tmp_path, prefix_len=4).prefix_len == 4


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((2, 100)), r"float64 of shape \[2, 100\]; need integer ids"),
        (np.array([[1], [1, 2]], dtype=object), "rows of unequal length .*; need integer ids"),
        (np.array([["a", "b"]]), "got <U1 of shape .* need integer ids"),
        (np.zeros(100, dtype=np.int32), r"of shape \[100\]; need integer ids"),
    ],
)
def test_arrays_that_are_no_paragraphs_are_refused(tmp_path, array, sentence):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=sentence):
        Paragraphs.load(tmp_path / "a.npy")


def test_unsigned_ids_and_a_prefix_of_nothing(tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 60), 50_000, dtype=np.uint16))
    assert int(Paragraphs.load(tmp_path / "a.npy").tokens.max()) == 50_000
    with pytest.raises(InputError, match="got 0 as prefix_len; need a whole number of at least 1"):
        Paragraphs.load(tmp_path / "a.npy", prefix_len=0)


def test_a_column_of_another_length_is_refused():
    with pytest.raises(InputError, match=r"column 'em' has shape \[3\] for 7 paragraphs; need one value for each"):
        paragraphs().with_columns(em=[1, 2, 3])


def test_ids_follow_the_paragraphs_everywhere(tmp_path):
    bare = Paragraphs(torch.tensor([[1, 2, 3], [4, 5, 6], [1, 2, 3]]), 1)
    assert len(set(bare.ids.tolist())) == 3 and (bare.ids >= 0).all()
    assert Paragraphs(bare.tokens.flip(0)[:2], 1).ids.tolist() == bare.ids[[0, 1]].tolist()
    later = bare.select([2, 1])
    assert later.ids.tolist() == bare.ids[[2, 1]].tolist()
    assert later.with_columns(em=[1, 2]).ids.tolist() == later.ids.tolist()
    later.save(tmp_path / "p.parquet")
    assert Paragraphs.load(tmp_path / "p.parquet").ids.tolist() == later.ids.tolist()
    assert later.replace_tokens(later.tokens + 1).ids.tolist() == later.ids.tolist()
    assert paragraphs().select([4, 2]).ids.tolist() == [4, 2]
    twice = bare.with_columns(id=[5, 6, 5])
    with pytest.raises(InputError, match="the id 5 occurs 2 times; ids must be unique"):
        _ = twice.ids


def test_rows_are_chosen_as_in_numpy():
    p = paragraphs()
    assert p.select(np.argsort([3, 1, 2, 7, 0, 5, 4])[::-1]).column("id").tolist() == [3, 5, 6, 0, 2, 1, 4]
    assert p[:3].column("id").tolist() == [0, 1, 2] and p[-1].column("id").tolist() == [6]
    assert p[np.arange(7) > 4].column("id").tolist() == [5, 6] and [len(one) for one in p] == [1] * 7
    with pytest.raises(IndexError, match="got index 7 for 7 paragraphs"):
        p[7]
    for wrong, sentence in (
        ([0, 0], "got a row twice"),
        ([9], "got rows 9 to 9 of 7"),
        ([0.5], "need a mask or integers"),
    ):
        with pytest.raises(InputError, match=sentence):
            p.select(wrong)


@pytest.mark.parametrize("wrong", [["text"], "text", [[0.5, 1.0]], [[1, 2], [1]], None])
def test_what_is_no_array_of_ids_is_refused_in_a_sentence(wrong):
    with pytest.raises(InputError, match="need (integer ids|token ids)"):
        Paragraphs(wrong, 1)
    assert Paragraphs([[1, 2, 3]], 1).tokens.tolist() == [[1, 2, 3]]  # pyright: ignore[reportArgumentType]


def test_a_notebook_shows_a_short_table_of_escaped_text():
    p = paragraphs(12).with_columns(text=["<script>alert(1)</script>"] * 12, em=range(12))
    page = p._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "4 more" in page and page.count("<tr>") == 9
    assert repr(p) == "Paragraphs(12 x 11 tokens, prefix 5; columns id, text, em)"


def test_a_table_shows_line_ends_kinds_and_no_control_characters():
    p = paragraphs(1).with_columns(text=["a\nb\0שלום"], kind=["news"], em=[3])
    page = p._repr_html_()
    assert "<th>kind</th><th>em</th>" in page and "<bdi>a↵b\ufffdשלום</bdi>" in page


def test_the_tokenizers_fingerprint_is_kept(tmp_path):
    p = Paragraphs(paragraphs().tokens, 5, tokenizer="300-abc")
    p.select([1, 2]).with_columns(em=[0, 1]).save(tmp_path / "p.parquet")
    assert Paragraphs.load(tmp_path / "p.parquet").tokenizer == "300-abc"


def test_no_columns_added_leaves_paragraphs_as_they_are():
    paragraphs = Paragraphs(torch.zeros(3, 4, dtype=torch.long), 2)
    assert paragraphs.with_columns() is paragraphs


def test_an_empty_name_of_a_column_is_a_name(tmp_path, name=""):
    table = pa.table({"tokens": [[1, 2, 3]] * 2, "id": [4, 5]}).append_column(name, pa.array([6, 7]))
    pq.write_table(table, tmp_path / "a.parquet")
    assert Paragraphs.load(tmp_path / "a.parquet", prefix_len=1).column(name).tolist() == [6, 7]
    pq.write_table(table.append_column(name, pa.array([6, 7])), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="2 times; need it once"):
        Paragraphs.load(tmp_path / "b.parquet", prefix_len=1)
