"""Where edits move, on a small model with a memory in known neurons."""

import copy

import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.model.sites import editable_parameters


@pytest.fixture(scope="module")
def run(tiny_model):
    """A small model, its copy with two texts in half of the neurons, and where they were put."""
    texts = mm.Paragraphs(torch.randint(0, tiny_model.cfg.d_vocab, (2, 16), generator=torch.manual_seed(0)), 8)
    neurons = [(layer, neuron) for layer in range(tiny_model.cfg.n_layers) for neuron in range(0, 32, 2)]
    mask = mm.Mask.neurons(tiny_model, neurons)
    told, history = mm.inject(tiny_model, texts, mask, training=mm.Training(200, 1e-2))
    assert float(history.em[-1]) == 8
    return tiny_model, told, texts, mask


def test_the_perfect_edit_moves_what_was_injected_and_others_do_not(script, run):
    module, (model, told, _, mask) = script("edit_localization"), run
    assert module.moved(told, model, model, mask) == pytest.approx({"auroc": 1, "share": 100, "cosine": 1}, abs=0.02)
    inside, outside, further = (copy.deepcopy(told) for _ in range(3))
    generator = torch.manual_seed(1)
    with torch.no_grad():
        for name in editable_parameters(told):
            label = torch.zeros(told.get_parameter(name).numel(), dtype=torch.bool)
            label[mask.indices.get(name, torch.zeros(0, dtype=torch.long))] = True
            label = label.view(told.get_parameter(name).shape)
            noise = torch.randn(label.shape, generator=generator)
            inside.get_parameter(name).add_(noise * label)
            outside.get_parameter(name).add_(noise * ~label)
            # Beyond where it began: the same place, the wrong way.
            further.get_parameter(name).add_(told.get_parameter(name) - model.get_parameter(name))
    assert module.moved(told, outside, model, mask)["auroc"] < 0.05
    assert module.moved(told, outside, model, mask)["share"] == pytest.approx(0, abs=1e-3)
    found = module.moved(told, inside, model, mask)
    assert found["auroc"] == pytest.approx(1) and abs(found["cosine"]) < 0.2
    assert module.moved(told, further, model, mask)["cosine"] == pytest.approx(-1)


def test_a_memory_comes_back_sooner_where_it_is_still_inside(script, run):
    module, (model, told, texts, mask) = script("edit_localization"), run
    settings = module.Settings(relearning=60, relearning_rate=1e-3)
    sets = {"targets": texts, "other": texts}
    before, undone = (module.measured(model, told, edited, sets, mask, settings) for edited in (told, model))
    assert before["targets EM"] == 8 and before["relearning steps"] == 0 and before["targets KL"] > 1
    assert undone["targets EM"] < 8 and undone["relearning steps"] > 3 and undone["targets KL"] == 0
    assert "auroc" not in before
    lines = module.table({"NPO": {"1": {**undone, "auroc": 0.5}}, "before": {"1": before}, "undone": {"1": undone}})
    assert [line.split(" |")[0] for line in lines[2:]] == ["| before", "| undone", "| NPO"]
    assert "| 0.500 |" in lines[-1]


def test_an_injection_that_learns_nothing_is_refused(script, run):
    module, (model, _, texts, _) = script("edit_localization"), run
    settings = module.Settings(targets=1, held=1, steps=1, learning_rate=1e-9)
    many = mm.Paragraphs(torch.cat([texts.tokens, texts.tokens, texts.tokens]), 8)
    with pytest.raises(InputError, match="after 1 steps of the injection; need all 8"):
        module.injected(model, many, 0, settings)
