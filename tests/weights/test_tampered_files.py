"""Edit files and masks that were damaged, changed or written for another model."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from mechmem.data.errors import InputError
from mechmem.weights.masks import Mask
from mechmem.weights.sparse_edit import Edit
from mechmem.weights.support import changed_weights

W_IN, W_V = "blocks.0.mlp.W_in", "blocks.1.attn.W_V"
SHAPES = {"a": (3, 4), "b": (2, 5)}


@pytest.fixture(scope="module")
def pair(tiny_model):
    """A model, and the same with three weights of one tensor and all of another changed."""
    edited = copy.deepcopy(tiny_model)
    with torch.no_grad():
        edited.get_parameter(W_IN).view(-1)[[9, 3, 1]] += 1
        edited.get_parameter(W_V).mul_(2)
    return tiny_model, edited


def saved(pair, path):
    Edit.between(*pair).save(path)
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


WRONG = {
    "negative": ({f"place.{W_IN}": torch.tensor([-1, 3, 9])}, "must be sorted, distinct and from 0 on"),
    "unsorted": ({f"place.{W_IN}": torch.tensor([3, 1, 9])}, "must be sorted, distinct"),
    "doubled": ({f"place.{W_IN}": torch.tensor([1, 1, 9])}, "must be sorted, distinct"),
    "beyond": ({f"place.{W_IN}": torch.tensor([1, 3, 10**6])}, "must be sorted, distinct and within 0"),
    "other places": ({f"place.{W_IN}": torch.tensor([1, 3])}, "3.* values for 2 places"),
    "32 bits": ({f"place.{W_IN}": torch.tensor([1, 3, 9], dtype=torch.int32)}, "need int64"),
    "two axes": ({f"place.{W_IN}": torch.tensor([[1, 3, 9]])}, "need int64 .chosen."),
    "one value": ({f"value.{W_IN}": torch.ones(1)}, "1.* values for 3 places"),
    "nan": ({f"value.{W_IN}": torch.tensor([1.0, torch.nan, 1.0])}, "not finite"),
    "infinite": ({f"whole.{W_V}": torch.full((4, 3, 7), torch.inf)}, "not finite"),
    "integers": ({f"value.{W_IN}": torch.tensor([1, 2, 3])}, "torch.int64 that are not finite weights"),
    "half": ({f"value.{W_IN}": torch.ones(3, dtype=torch.float16)}, "as torch.float16, which the model has as"),
    "broadcast": ({f"whole.{W_V}": torch.ones(1)}, "with shape .1. for the model's"),
    "no places": ({f"place.{W_IN}": None}, "has places or values alone"),
    "no values": ({f"value.{W_IN}": None}, "has places or values alone"),
    "twice": ({f"whole.{W_IN}": torch.ones(3)}, "holds the values of '.*' twice"),
    "unknown": ({"place.c": torch.tensor([0]), "value.c": torch.ones(1)}, "which the model has as none"),
    "other kind": ({"weight": torch.ones(1)}, "holds the tensor 'weight', which is none of"),
    "other prefix": ({f"add.{W_IN}": torch.ones(3)}, "which is none of place.NAME"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_changed_edit_is_refused_and_the_model_is_left_alone(name, pair, tmp_path):
    path = tmp_path / "edit.safetensors"
    tensors, notes = saved(pair, path)
    changes, sentence = WRONG[name]
    save_file({n: t for n, t in (tensors | changes).items() if t is not None}, path, metadata=notes)
    model = copy.deepcopy(pair[0])
    with pytest.raises(InputError, match=sentence):
        Edit.load(path).apply(model)
    with pytest.raises(InputError, match=sentence), Edit.load(path).applied(model):
        pass
    assert changed_weights(pair[0], model) == 0


def test_a_changed_strength_is_refused(pair, tmp_path):
    tensors, notes = saved(pair, tmp_path / "e.safetensors")
    for strength in ("much", "nan", "inf", ""):
        save_file(tensors, tmp_path / "e.safetensors", metadata=notes | {"strength": strength})
        with pytest.raises(InputError, match="is damaged or was changed"):
            Edit.load(tmp_path / "e.safetensors")


def test_an_edit_of_another_model_is_refused(pair, small_model, tmp_path):
    tensors, notes = saved(pair, tmp_path / "e.safetensors")
    save_file(tensors, tmp_path / "e.safetensors", metadata=notes | {"source": "0" * 16})
    with pytest.raises(InputError, match="got an edit of the weights 0000000000000000 for a model of the weights"):
        Edit.load(tmp_path / "e.safetensors").apply(pair[0])
    with pytest.raises(InputError, match="load the model that was edited"):
        Edit.between(*pair).apply(small_model())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bytes_that_differ_are_the_edit_or_one_sentence(pair, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    saved(pair, path)
    raw = bytearray(path.read_bytes())
    # Half of the changes hit the header, which is small.
    place = data.draw(st.integers(0, min(len(raw), 400) - 1) | st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw), place]))])
    try:
        edited = Edit.load(path).apply(pair[0])
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert all(bool(value.isfinite().all()) for value in edited.parameters())


CHOICES = st.fixed_dictionaries({"a": st.sets(st.integers(0, 11)), "b": st.sets(st.integers(0, 9))})


def made(chosen: dict[str, set[int]]) -> Mask:
    return Mask({name: torch.tensor(sorted(each)).long() for name, each in chosen.items()}, SHAPES)


def members(mask: Mask) -> set[tuple[str, int]]:
    return {(name, int(index)) for name, chosen in mask.indices.items() for index in chosen}


@settings(max_examples=60, deadline=None)
@given(first=CHOICES, second=CHOICES)
def test_masks_are_sets_of_weights_and_survive_a_file(first, second, tmp_path_factory):
    one, two = made(first), made(second)
    a, b = members(one), members(two)
    assert members(one.union(two)) == a | b and members(one.intersection(two)) == a & b
    assert len(members(one.complement())) == 22 - len(a) and not members(one.complement()) & a
    assert one.overlap(two) == (len(a & b) / len(a | b) if a | b else 0.0)
    path = tmp_path_factory.getbasetemp() / "mask.safetensors"
    one.save(path)
    read = Mask.load(path)
    assert members(read) == a and dict(read.shapes) == SHAPES


@settings(max_examples=60, deadline=None)
@given(indices=st.lists(st.integers(-3, 14) | st.just(2**62), max_size=5))
def test_a_mask_takes_sorted_distinct_indices_within_the_tensor_alone(indices):
    good = indices == sorted(set(indices)) and all(0 <= index < 12 for index in indices)
    if good:
        assert members(Mask({"a": torch.tensor(indices).long()}, SHAPES)) == {("a", index) for index in indices}
    else:
        with pytest.raises(InputError, match="must be sorted, distinct and within 0..11"):
            Mask({"a": torch.tensor(indices)}, SHAPES)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"indices.a": torch.tensor([0]), "shape.a": torch.tensor([-3, 4])}, "need sizes of at least 1"),
        ({"indices.a": torch.tensor([0]), "shape.a": torch.tensor([2**40, 2**40])}, "need sizes of at least 1"),
        ({"indices.a": torch.tensor([0]), "shape.a": torch.tensor([3.0, 4.0])}, "need int64"),
        ({"indices.a": torch.tensor([0]), "shape.a": torch.tensor(3)}, "need int64"),
        ({"indices.a": torch.tensor([0.0]), "shape.a": torch.tensor([3, 4])}, "need int64 .chosen."),
        ({"indices.a": torch.tensor(0), "shape.a": torch.tensor([3, 4])}, "need int64 .chosen."),
        ({"indices": torch.tensor([0])}, "which is none of indices.NAME"),
        ({"indices.a": torch.tensor([0])}, "no shape"),
    ],
)
def test_a_changed_mask_is_refused(tensors, sentence, tmp_path):
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=rf"m\.safetensors: .*{sentence}"):
        Mask.load(tmp_path / "m.safetensors")
