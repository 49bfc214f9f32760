import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mechmem.data.errors import InputError
from mechmem.model.masks import Mask


def scores(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) for name, shape in {"b": (7, 11), "a": (13,), "c": (3, 5)}.items()
    }


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5, 1.0])
def test_top_takes_the_largest_absolute_scores_of_all_tensors(fraction):
    weights = scores()
    mask = Mask.top(weights, fraction=fraction)
    wanted = max(1, round(fraction * 105))
    assert mask.count == wanted and mask.total == 105
    everything = sorted(
        ((abs(float(v)), n, i) for n in weights for i, v in enumerate(weights[n].flatten())), reverse=True
    )
    expected = {(name, index) for _, name, index in everything[:wanted]}
    assert {(n, i) for n, indices in mask.indices.items() for i in indices.tolist()} == expected


def test_ties_go_to_the_first_by_name_and_index():
    mask = Mask.top({"b": torch.ones(4), "a": -torch.ones(3)}, fraction=5 / 7)
    assert {n: i.tolist() for n, i in mask.indices.items()} == {"a": [0, 1, 2], "b": [0, 1]}


def test_random_like_has_the_same_count_in_every_tensor_and_other_weights():
    mask = Mask.top(scores(), fraction=0.2)
    random = [Mask.random_like(mask, seed=seed) for seed in range(40)]
    for control in random:
        assert {n: len(i) for n, i in control.indices.items()} == {n: len(i) for n, i in mask.indices.items()}
    assert Mask.random_like(mask, seed=3).indices["b"].tolist() == random[3].indices["b"].tolist()
    # Uniform: over seeds every weight of a tensor is drawn about equally often.
    drawn = np.bincount(np.concatenate([control.indices["b"].numpy() for control in random]), minlength=77)
    expected = 40 * len(mask.indices["b"]) / 77
    assert abs(drawn[mask.indices["b"].numpy()].mean() - expected) < 0.25 * expected


def test_union_intersection_and_overlap_are_those_of_sets():
    one, two = Mask.top(scores(0), fraction=0.3), Mask.top(scores(1), fraction=0.4)
    a, b = ({(n, i) for n, v in m.indices.items() for i in v.tolist()} for m in (one, two))
    assert {(n, i) for n, v in one.union(two).indices.items() for i in v.tolist()} == a | b
    assert {(n, i) for n, v in one.intersection(two).indices.items() for i in v.tolist()} == a & b
    assert one.overlap(two) == pytest.approx(len(a & b) / len(a | b))
    assert one.overlap(one) == 1.0


def test_save_and_load(tmp_path):
    mask = Mask.top(scores(), fraction=0.1)
    mask.save(tmp_path / "m.safetensors")
    read = Mask.load(tmp_path / "m.safetensors")
    assert dict(read.shapes) == dict(mask.shapes)
    assert {n: i.tolist() for n, i in read.indices.items()} == {n: i.tolist() for n, i in mask.indices.items()}


def test_bad_masks_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"fraction is 0.0; wanted 0 < fraction"):
        Mask.top(scores(), fraction=0.0)
    with pytest.raises(InputError, match="scores of 'a' hold NaN"):
        Mask.top({"a": torch.tensor([1.0, float("nan")])}, fraction=0.5)
    with pytest.raises(InputError, match="sorted, distinct and within 0..5"):
        Mask({"a": torch.tensor([2, 2])}, {"a": (6,)})
    with pytest.raises(InputError, match="sorted, distinct and within 0..5"):
        Mask({"a": torch.tensor([2, 6])}, {"a": (6,)})
    with pytest.raises(InputError, match="no shape"):
        Mask({"a": torch.tensor([2])}, {})
    with pytest.raises(InputError, match="different names or shapes"):
        Mask.top(scores(), fraction=0.5).union(Mask.top({"a": torch.ones(3)}, fraction=0.5))
    with pytest.raises(InputError, match="none.safetensors: no such file"):
        Mask.load(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        Mask.load(tmp_path / "cut.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="holds tensors that no mask has"):
        Mask.load(tmp_path / "model.safetensors")
