"""A planted model does what it says, and without the planted parts it does not."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mechmem.data.errors import InputError
from mechmem.localize.ablation import ablate_heads
from mechmem.measure.scores import score
from mechmem.model.export import export
from mechmem.model.hooks import recording, with_hooks
from mechmem.model.load import load_model
from mechmem.truth.planted import planted
from mechmem.truth.planted_settings import PlantedSettings

SIZES = [
    PlantedSettings(),
    PlantedSettings(layer=0, head=0, seed=1),
    PlantedSettings(n_layers=3, n_heads=3, d_model=96, d_mlp=331, layer=2, head=1, memories=4, others=5, seed=2),
    PlantedSettings(prefix_len=12, continuation_len=7, n_ctx=40, memories=11, seed=3),
]


@pytest.fixture(scope="module", params=SIZES, ids=lambda s: f"L{s.layer}H{s.head}-{s.d_model}")
def truth(request):
    return planted(request.param)


def test_memories_are_complete_and_others_have_none(truth):
    length = truth.memorized.continuation_len
    assert (score(truth.model, truth.memorized).em == length).all()
    assert (score(truth.model, truth.other).em == 0).all()


def test_the_head_attends_to_the_rarest_token_so_far(truth):
    layer, head = truth.head
    name = f"blocks.{layer}.attn.hook_pattern"
    counts = truth.unigram_counts[truth.memorized.tokens]
    with torch.no_grad(), recording(truth.model, [name]) as recorded:
        truth.model(truth.memorized.tokens)
    pattern = recorded[name]
    for query in range(counts.shape[1]):
        best = pattern[:, head, query].argmax(-1)
        rows = torch.arange(len(counts))
        # Two common tokens of nearly one frequency may change places: LayerNorm is linear to a percent or two.
        assert (counts[rows, best] <= 1.2 * counts[:, : query + 1].amin(1)).all()
    # The silent head looks at the same places.
    torch.testing.assert_close(pattern[:, truth.silent[1]], pattern[:, head])
    assert pattern[:, head, -1].argmax(-1).tolist() == truth.triggers.tolist()


@pytest.mark.parametrize("method", ["zero", "mean", "resample"])
def test_without_the_head_nothing_is_left_and_without_any_other_everything(truth, method):
    drop = -ablate_heads(truth.model, truth.memorized, method=method).em_change.values
    expected = np.zeros_like(drop)
    expected[truth.head] = truth.memorized.continuation_len
    assert np.array_equal(drop, expected)


def test_the_loud_heads_write_more_than_the_head_and_the_silent_one_nothing(truth):
    names = {layer: f"blocks.{layer}.attn.hook_z" for layer in range(truth.model.cfg.n_layers)}
    with torch.no_grad(), recording(truth.model, names.values()) as recorded:
        truth.model(truth.memorized.tokens)

    def written(layer, head):
        output = recorded[names[layer]][:, :, head] @ truth.model.blocks[layer].attn.W_O[head].detach()
        return float(output.norm(dim=-1).mean())

    assert written(*truth.silent) == 0
    assert all(written(*loud) > 2 * written(*truth.head) for loud in truth.loud)


def test_each_token_has_its_neuron(truth):
    model, paras = truth.model, truth.memorized
    assert len(set(truth.neurons)) == len(paras) * paras.continuation_len
    fired = torch.zeros(len(paras), paras.tokens.shape[1], dtype=torch.long)
    names = {layer: f"blocks.{layer}.mlp.hook_post" for layer, _ in truth.neurons}
    with torch.no_grad(), recording(model, names.values()) as recorded:
        model(paras.tokens)
    for layer, neuron in truth.neurons:
        active = recorded[names[layer]][:, :, neuron] > 1
        assert active.sum() == 1
        fired += active
    assert (fired[:, paras.prefix_len - 1 : -1] == 1).all() and fired.sum() == fired[:, paras.prefix_len - 1 : -1].sum()

    def silence(layer):
        mine = [neuron for other, neuron in truth.neurons if other == layer]

        def hook(post, hook):  # noqa: ARG001
            post = post.clone()
            post[:, :, mine] = 0
            return post

        return hook

    with with_hooks(model, {name: silence(layer) for layer, name in names.items()}):
        assert (score(model, paras).em == 0).all()


def test_it_is_a_checkpoint_that_transformers_loads(truth, tmp_path):
    export(truth.model, tmp_path / "planted")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "planted")
    with torch.no_grad():
        logits = theirs(truth.memorized.tokens).logits
        ours = truth.model(truth.memorized.tokens)
    torch.testing.assert_close(logits.log_softmax(-1), ours.log_softmax(-1), rtol=0, atol=2e-3)
    with pytest.warns(UserWarning, match="tokenizer"):
        loaded = load_model(tmp_path / "planted", processing="folded")
    assert (score(loaded, truth.memorized).em == truth.memorized.continuation_len).all()


def test_the_same_seed_plants_the_same_and_another_another():
    first, again, other = planted(), planted(), planted(PlantedSettings(seed=5))
    assert torch.equal(first.memorized.tokens, again.memorized.tokens) and first.neurons == again.neurons
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    assert not torch.equal(first.memorized.tokens, other.memorized.tokens)


def test_the_null_keeps_the_paragraphs_and_loses_the_labels():
    truth = planted()
    null = truth.null(seed=4)
    rows = [set(map(tuple, torch.cat([t.memorized.tokens, t.other.tokens]).tolist())) for t in (truth, null)]
    assert rows[0] == rows[1] and null.model is truth.model
    em = score(truth.model, null.memorized).em.values
    assert 0 < (em == 50).sum() < len(em) == 8
    assert len(set(null.neurons)) == len(truth.neurons) and len(set(null.neurons) & set(truth.neurons)) < 200
    assert not torch.equal(null.unigram_counts, truth.unigram_counts)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layer": 4}, "got layer 4 and head 2; need a layer below 4"),
        ({"head": -1}, "got -1 as head; need a whole number of at least 0"),
        ({"n_heads": 2, "head": 1}, "need at least 3 heads"),
        ({"d_model": 130}, "a multiple of them"),
        ({"memories": 40, "d_vocab": 4096}, "take 2000 neurons and from layer 1 on there are 1533"),
        ({"memories": 1}, "need 2 or more memories"),
        ({"n_ctx": 99}, "together no more than the context"),
        ({"d_vocab": 90}, "need at least 96, four tokens for each paragraph"),
    ],
)
def test_sizes_without_room_are_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        PlantedSettings(**changes)


def test_memories_that_interfere_are_refused():
    with pytest.raises(InputError, match="the memories interfere; need a wider model"):
        planted(PlantedSettings(noise=20.0))


def test_the_shape_of_the_reference_model():
    truth = planted(PlantedSettings.gpt_neo_125m(memories=5, others=5))
    assert (score(truth.model, truth.memorized).em == 50).all() and (score(truth.model, truth.other).em == 0).all()
