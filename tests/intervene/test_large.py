"""An edit of GPT-Neo 125M's shape, from its folder to a folder that transformers loads."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPTNeoConfig

from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.loop import Stop
from mechmem.intervene.unlearn import unlearn
from mechmem.model.export import export
from mechmem.model.load import load_model
from mechmem.model.sites import editable_parameters
from mechmem.weights.masked_weights import MaskedWeights
from mechmem.weights.masks import Mask
from mechmem.weights.support import changed_weights
from mechmem.weights.training import Training

pytestmark = pytest.mark.filterwarnings("ignore:.* has no tokenizer:UserWarning")


def test_an_edit_of_the_125m_shape_goes_round(tmp_path):
    config = GPTNeoConfig(hidden_size=768, num_layers=12, num_heads=12, attention_types=[[["global", "local"], 6]])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    model = load_model(tmp_path / "source", device="cpu")
    generator = torch.Generator().manual_seed(0)
    parameters = editable_parameters(model)
    chosen = {
        name: torch.randint(p.numel(), (p.numel() // 1000,), generator=generator).unique()
        for name, p in parameters.items()
    }
    mask = Mask(chosen, {name: tuple(p.shape) for name, p in parameters.items()})
    tokens = torch.randint(50257, (2, 100), generator=generator)
    edited, _ = unlearn(
        model, Paragraphs(tokens[:1]), Paragraphs(tokens[1:]), mask=mask,
        training=Training(steps=2, learning_rate=1e-2), method="contrastive", stop=Stop(),
        check_targets=False,
    )  # fmt: skip
    assert 0.99 * mask.count < changed_weights(model, edited) <= mask.count
    export(edited, tmp_path / "edited")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "edited", local_files_only=True).eval()
    with torch.no_grad():
        assert float((loaded(tokens).logits - edited(tokens)).abs().max()) < 1e-4
        assert float((loaded(tokens).logits - model(tokens)).abs().max()) > 1e-3
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("source", "edited"))
    differ = sum(int((before[n].view(torch.int32) != after[n].view(torch.int32)).sum()) for n in before)
    assert before.keys() == after.keys() and differ == changed_weights(model, edited)
    # What the optimizer keeps is three numbers a chosen weight (value and two moments), and a count of steps a tensor.
    weights = MaskedWeights(edited, mask, Training(learning_rate=1e-3))
    weights.update(weights.continuation_logits(tokens[:1], 50).mean())
    kept = sum(tensor.numel() for tensor in weights.state()[0].values())
    assert kept <= 3 * mask.count + len(mask.indices) and kept * 4 < 2 * 2**20
