import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.model.load import load_model
from mechmem.weights.sparse_edit import load_edit, save_edit
from mechmem.weights.support import changed_weights

pytestmark = pytest.mark.filterwarnings("ignore:.* has no tokenizer:UserWarning")


@pytest.fixture
def pair(write_checkpoint):
    """A model, and the same with some weights of one tensor, all of another and a sign of zero changed."""
    folder, _ = write_checkpoint("gpt_neo")
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
    _, reference = write_checkpoint("gpt_neo")
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
