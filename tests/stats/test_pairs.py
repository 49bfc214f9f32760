"""Pairs for patching: matched, random, and from a file."""

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.stats.pairs import pairs, read_pairs


def paragraphs(count: int, seed: int, **columns) -> mm.Paragraphs:
    tokens = torch.randint(0, 61, (count, 12), generator=torch.Generator().manual_seed(seed))
    return mm.Paragraphs(tokens, 7).with_columns(**columns)


@pytest.fixture
def sets() -> tuple[mm.Paragraphs, mm.Paragraphs]:
    memorized = paragraphs(4, 1, rarity=[1.0, 2.0, 3.0, 4.0], source=["a", "b", "a", "b"], cluster=[0, 1, 2, 3])
    other = paragraphs(
        8, 2, rarity=[4.1, 3.1, 2.1, 1.1, 9, 9, 9, 1.0], source=["b", "a", "b", "a", "a", "b", "c", "a"],
        cluster=[4, 5, 6, 7, 8, 9, 10, 0],
    )  # fmt: skip
    return memorized, other


def test_each_memorized_paragraph_gets_the_one_most_like_it(sets):
    memorized, other = sets
    clean, corrupt = pairs(memorized, other)
    assert clean.ids.tolist() == memorized.ids.tolist() == clean.column("pair").tolist()
    assert corrupt.ids.tolist() == other.ids[[3, 2, 1, 0]].tolist(), "1.0 is nearer, and of the same cluster"
    assert corrupt.column("pair").tolist() == memorized.ids.tolist()
    assert mm.pairs(memorized, other, match=["source"])[1].column("source").tolist() == ["a", "b", "a", "b"]


def test_what_has_no_partner_is_left_out(sets):
    memorized, other = sets
    clean, corrupt = pairs(memorized, other.select([0, 1, 4, 6]), caliper=0.2)
    assert clean.ids.tolist() == memorized.ids[[2, 3]].tolist() and corrupt.ids.tolist() == other.ids[[1, 0]].tolist()


def test_pairs_at_random_are_never_of_one_cluster(sets):
    memorized, other = sets
    drawn = [tuple(pairs(memorized, other, match=(), seed=seed)[1].ids.tolist()) for seed in range(20)]
    assert len(set(drawn)) > 10 and all(len(set(ids)) == 4 and other.ids[7] not in ids for ids in drawn)
    assert drawn[3] == tuple(pairs(memorized, other, match=(), seed=3)[1].ids.tolist())
    with pytest.raises(InputError, match="got 4 memorized and 0 other paragraphs of other clusters"):
        pairs(memorized, other[7:], match=())
    with pytest.raises(InputError, match=r"got memorized of length and prefix \(12, 7\) and other of \(11, 7\)"):
        pairs(memorized, mm.Paragraphs(other.tokens[:, :11], 7), match=())
    with pytest.raises(InputError, match="no column 'nll'"):
        pairs(memorized, other, match=["nll"])


def test_pairs_patch(tiny_model):
    clean, corrupt = pairs(paragraphs(3, 1), paragraphs(5, 2), match=())
    effect = mm.patch(tiny_model, clean, corrupt, site="z", direction="noising", average=False)
    assert effect.paragraph.values.tolist() == clean.ids.tolist() and np.isfinite(effect).all()


def joined(clean, corrupt, order, **columns):
    tokens = torch.cat([clean.tokens, corrupt.tokens])[order]
    sides = np.array(["clean"] * len(clean) + ["corrupt"] * len(corrupt))[order]
    labels = np.array([*clean.column("pair"), *corrupt.column("pair")])[order]
    return mm.Paragraphs(tokens, clean.prefix_len).with_columns(**({"side": sides, "pair": labels} | columns))


def test_both_sides_come_back_from_one_file(sets, tmp_path):
    clean, corrupt = pairs(*sets)
    joined(clean, corrupt, [5, 0, 3, 7, 4, 2, 6, 1]).save(tmp_path / "pairs.parquet")
    found = read_pairs(tmp_path / "pairs.parquet")
    for side, expected in zip(found, (clean, corrupt), strict=True):
        assert torch.equal(side.tokens, expected.tokens[[0, 3, 2, 1]]) and side.prefix_len == 7


@pytest.mark.parametrize(
    ("order", "columns", "said"),
    [
        ([0, 1, 4], {}, "has one side; need a clean and a corrupt row"),
        ([0, 4, 4], {"id": [1, 2, 3]}, "has two corrupt rows; need one of each side"),
        ([0, 4], {"side": ["clean", "dirty"]}, "has the sides dirty; need clean and corrupt"),
    ],
)
def test_a_file_of_half_pairs_is_refused(sets, tmp_path, order, columns, said):
    clean, corrupt = pairs(*sets)
    joined(clean, corrupt, order, **columns).save(tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match=said):
        read_pairs(tmp_path / "pairs.parquet")
    clean.save(tmp_path / "plain.parquet")
    with pytest.raises(InputError, match="has no column 'side'"):
        read_pairs(tmp_path / "plain.parquet")
