import copy

import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.model.load import load_model
from mechmem.weights.sparse_edit import Edit, load_edit, save_edit
from mechmem.weights.support import changed_weights

pytestmark = pytest.mark.filterwarnings("ignore:.* has no tokenizer:UserWarning")


@pytest.fixture
def write_checkpoint(tmp_path, tiny_pair):
    def write():
        reference = copy.deepcopy(tiny_pair.reference)
        reference.save_pretrained(tmp_path / "model")
        return tmp_path / "model", reference

    return write


@pytest.fixture
def pair(write_checkpoint):
    """A model, and the same with some weights of one tensor, all of another and a sign of zero changed."""
    folder, _ = write_checkpoint()
    model, edited = load_model(folder), load_model(folder)
    with torch.no_grad():
        edited.get_parameter("blocks.0.mlp.W_in").view(-1)[[3, 1]] += 1
        edited.get_parameter("blocks.1.attn.W_V").mul_(2)
        model.get_parameter("blocks.0.attn.b_Q")[0, 0] = 0.0
        edited.get_parameter("blocks.0.attn.b_Q")[0, 0] = -0.0
    return model, edited


def test_an_edit_comes_back_bit_for_bit_and_the_original_is_left_alone(pair, tmp_path):
    model, edited = pair
    save_edit(model, edited, tmp_path / "e.safetensors", {"method": "test"})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded, notes = load_edit(model, tmp_path / "e.safetensors")
    assert notes == {"method": "test"}
    assert changed_weights(edited, loaded) == 0 and changed_weights(model, loaded) == changed_weights(model, edited)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    whole = sum(value.numel() * 4 for value in before.values())
    assert (tmp_path / "e.safetensors").stat().st_size < whole / 4


def test_an_edit_of_other_weights_or_a_broken_file_is_refused(pair, write_checkpoint, tmp_path):
    model, edited = pair
    file = tmp_path / "e.safetensors"
    save_edit(model, edited, file)
    _, reference = write_checkpoint()
    reference.transformer.wte.weight.data[0, 0] += 1
    reference.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="load the model that was edited"):
        load_edit(load_model(tmp_path / "other"), file)
    with pytest.raises(InputError, match=r"\(folded\)"):
        load_edit(load_model(model.mechmem_provenance.folder, processing="folded"), file)
    with pytest.raises(InputError, match="no such file"):
        load_edit(model, tmp_path / "none")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_edit(model, file)


def test_an_edit_in_place_is_gone_after_the_block_whatever_happens(pair):
    model, edited = pair
    edit = Edit.between(model, edited)
    former = {name: value.clone() for name, value in model.state_dict().items()}

    def same(state) -> bool:
        # -0.0 equals 0.0 as a value, so bits are compared.
        return all(
            torch.equal(a.view(-1).view(torch.uint8), state[n].view(-1).view(torch.uint8)) for n, a in former.items()
        )

    with edit.applied(model) as inside:
        assert inside is model and changed_weights(model, edited) == 0
    assert same(model.state_dict())
    with pytest.raises(KeyboardInterrupt), edit.applied(model):
        raise KeyboardInterrupt
    assert same(model.state_dict())
    assert changed_weights(edit.apply(model), edited) == 0 and same(model.state_dict())


def test_an_edit_says_briefly_what_it_is(pair, tiny_model):
    edit = Edit.between(*pair)
    assert repr(edit).startswith("Edit(") and len(repr(edit)) < 120
    nothing = Edit.between(tiny_model, tiny_model)
    assert nothing.count == 0 and changed_weights(nothing.apply(tiny_model), tiny_model) == 0
    with pytest.raises(InputError, match="load the model that was edited"):
        edit.apply(tiny_model)


def test_strength_moves_each_weight_a_share_of_the_way(pair, tmp_path):
    model, edited = pair
    edit = Edit.between(model, edited)
    half = edit.scaled(0.5)
    half.save(tmp_path / "half.safetensors")
    for same in (half, Edit.load(tmp_path / "half.safetensors"), edit.scaled(0.25).scaled(2)):
        for name, tensor in same.apply(model).named_parameters():
            before, after = model.get_parameter(name), edited.get_parameter(name)
            torch.testing.assert_close(tensor, before + 0.5 * (after - before))
    assert changed_weights(model, edit.scaled(0).apply(model)) <= 1, "at most the sign of a zero"
    assert changed_weights(edited, edit.scaled(1).apply(model)) == 0
    assert "at strength 0.5" in repr(half) and Edit.load(tmp_path / "half.safetensors").strength == 0.5
    back = edit.scaled(-1).apply(model).state_dict()["blocks.1.attn.W_V"]
    torch.testing.assert_close(back, torch.zeros_like(back))
    with pytest.raises(InputError, match="got nan as factor; need a finite number"):
        edit.scaled(float("nan"))


def test_a_union_is_both_edits(pair):
    model, edited = pair
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter("blocks.0.mlp.W_in").view(-1)[[0, 3, 9]] += torch.tensor([5.0, 1.0, 7.0])
        other.get_parameter("blocks.2.mlp.W_out").view(-1)[4] -= 1
    one, two = Edit.between(model, edited, {"a": "1"}), Edit.between(model, other, {"b": "2"})
    both = (one | two).apply(model)
    expected = copy.deepcopy(edited)
    with torch.no_grad():
        expected.get_parameter("blocks.0.mlp.W_in").view(-1)[[0, 9]] += torch.tensor([5.0, 7.0])
        expected.get_parameter("blocks.2.mlp.W_out").view(-1)[4] -= 1
    assert changed_weights(both, expected) == 0 and (one | two).notes == {"a": "1", "b": "2"}
    assert changed_weights((two | one).apply(model), expected) == 0
    assert changed_weights((one | one).apply(model), edited) == 0
    with torch.no_grad():
        other.get_parameter("blocks.0.mlp.W_in").view(-1)[3] += 1
    with pytest.raises(InputError, match="both edits set weights of 'blocks.0.mlp.W_in' to different values"):
        _ = one | Edit.between(model, other)
    with torch.no_grad():
        other.get_parameter("blocks.1.attn.W_V").view(-1)[0] += 1
    with pytest.raises(InputError, match="need edits of one model and strength"):
        _ = one | two.scaled(0.5)


def test_edits_nest_and_one_is_not_applied_twice(pair):
    model, edited = pair
    former = {name: value.clone() for name, value in model.state_dict().items()}
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter("blocks.1.attn.W_V").add_(1)
        other.get_parameter("blocks.2.mlp.W_out").view(-1)[4] -= 1
    one, two = Edit.between(model, edited), Edit.between(model, other)
    with one.applied(model), two.applied(model):
        assert torch.equal(model.state_dict()["blocks.1.attn.W_V"], other.state_dict()["blocks.1.attn.W_V"])
        with pytest.raises(InputError, match="the model has this edit already"):
            two.apply(model)
    with pytest.raises(KeyboardInterrupt), one.applied(model):
        with pytest.raises(InputError, match="has this edit already"), one.applied(model):
            pass
        raise KeyboardInterrupt
    assert all(torch.equal(value, former[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="has this edit already"):
        one.apply(one.apply(model))
