import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.edit import edit, learned, with_continuation
from mechmem.intervene.loop import Stop
from mechmem.intervene.memorize import memorize, weights_needed
from mechmem.localize.gradients import weight_gradients
from mechmem.measure.scores import kl, score
from mechmem.weights.masks import Mask
from mechmem.weights.support import changed_weights, verify_support
from mechmem.weights.training import Training


@pytest.fixture(scope="module")
def paras(tiny_model):
    """Four paragraphs that the model says by itself, and nine random ones."""
    tokens = torch.randint(0, tiny_model.cfg.d_vocab, (13, 14), generator=torch.Generator().manual_seed(4))
    for pos in range(8, 14):
        with torch.no_grad():
            tokens[:4, pos] = tiny_model(tokens[:4, :pos])[:, -1].argmax(-1)
    return Paragraphs(tokens[:4], 8), Paragraphs(tokens[4:], 8)


@pytest.fixture(scope="module")
def corrupt(paras):
    """The same paragraphs with the prefix's third token and the whole continuation replaced."""
    tokens = paras[0].tokens.clone()
    tokens[:, 2] = (tokens[:, 2] + 1) % 61
    tokens[:, 8:] = torch.randint(0, 61, (4, 6), generator=torch.Generator().manual_seed(5))
    return Paragraphs(tokens, 8)


@pytest.fixture(scope="module")
def mask(tiny_model, paras):
    return Mask.top(weight_gradients(tiny_model, paras[0]), fraction=0.2)


def test_a_rewritten_memory_says_the_new_text_after_the_old_prefix(tiny_model, paras, corrupt, mask):
    clean, keep = paras
    said = lambda row: row["target_em"] == 6  # noqa: E731
    edited, history = edit(
        tiny_model, clean, corrupt, keep, mask=mask, training=Training(steps=300, learning_rate=2e-2), stop=said
    )
    tokens = clean.prefix.clone()
    for _ in range(6):
        with torch.no_grad():
            tokens = torch.cat([tokens, edited(tokens)[:, -1:].argmax(-1)], 1)
    assert torch.equal(tokens[:, 8:], corrupt.continuation), "greedy text, decoded token by token"
    assert history.ended == "stop rule" and history.target_em.values[-1] == 6
    assert history.clean_em_before == 6 and history.clean_em_after < 3
    verify_support(tiny_model, edited, mask)


def test_training_ends_when_all_is_said_and_no_token_of_it_just_so(paras):
    rule = learned(paras[0])
    assert rule({"target_em": 6.0, "target_nll": 0.3})
    assert not rule({"target_em": 6.0, "target_nll": 0.31}) and not rule({"target_em": 5.9, "target_nll": 0.1})


@pytest.mark.filterwarnings("ignore:the edit taught nothing")
def test_the_perturbed_variant_trains_the_corrupt_paragraph_itself(tiny_model, paras, corrupt, mask):
    clean, keep = paras
    settings = {"mask": mask, "training": Training(steps=12, learning_rate=1e-2), "stop": Stop()}
    edited, history = edit(tiny_model, clean, corrupt, keep, variant="perturbed", **settings)
    own, _ = edit(tiny_model, clean, corrupt, keep, variant="rewrite", **settings)
    rewritten = with_continuation(clean, corrupt.continuation)
    nll = {name: float(score(m, corrupt).nll.mean()) for name, m in (("perturbed", edited), ("rewrite", own))}
    assert nll["perturbed"] < nll["rewrite"]
    assert float(score(own, rewritten).nll.mean()) < float(score(edited, rewritten).nll.mean())
    assert history.target_nll[0] == pytest.approx(float(score(tiny_model, corrupt).nll.mean()), abs=1e-5)


def test_any_text_can_be_the_new_continuation(paras):
    clean, _ = paras
    text = torch.tensor([1, 2, 3, 4, 5, 6])
    made = with_continuation(clean, text)
    assert torch.equal(made.prefix, clean.prefix) and made.continuation.tolist() == [text.tolist()] * 4
    with pytest.raises(InputError, match=r"need \[4, 6\] or \[6\]"):
        with_continuation(clean, text[:3])


def test_a_memorized_paragraph_is_said_and_its_weights_are_counted(tiny_model, paras, mask):
    known, new = paras
    few = new.select(np.arange(2))
    model, history = memorize(tiny_model, few, known, mask=mask, training=Training(steps=300, learning_rate=2e-2))
    assert history.learned == 1 and bool((score(model, few).em == 6).all())
    verify_support(tiny_model, model, mask)
    needed = history.weights_needed
    assert 0 < needed < changed_weights(tiny_model, model) <= history.weights_allowed == mask.count
    # Slow oracle: keep that many of the largest changes, element by element.
    before, after = tiny_model.state_dict(), {name: value.clone() for name, value in model.state_dict().items()}
    places = sorted(
        (-abs((after[name].view(-1)[i] - before[name].view(-1)[i]).item()), name, int(i))
        for name, index in mask.indices.items()
        for i in index
    )
    for _, name, i in places[needed:]:
        after[name].view(-1)[i] = before[name].view(-1)[i]
    model.load_state_dict(after)
    assert bool((score(model, few).em == 6).all())
    for _, name, i in places[needed // 2 :]:
        after[name].view(-1)[i] = before[name].view(-1)[i]
    model.load_state_dict(after)
    assert not bool((score(model, few).em == 6).all()), "half of them is not enough"
    with pytest.raises(InputError, match="does not reproduce the paragraphs"):
        weights_needed(tiny_model, tiny_model, few)


def test_holding_the_keep_set_costs_less_of_it(tiny_model, paras, mask):
    known, new = paras
    few = new.select(np.arange(2))
    price = [
        float(
            kl(
                tiny_model,
                memorize(
                    tiny_model, few, known, mask=mask, training=Training(steps=300, learning_rate=1e-2, keep_weight=w)
                )[0],
                known,
            ).mean()
        )
        for w in (0.0, 3.0)
    ]
    assert price[1] < 0.5 * price[0]


def test_bad_input_is_refused(tiny_model, paras, corrupt, mask):
    clean, keep = paras
    with pytest.raises(InputError, match="need one corrupt row for each clean one"):
        edit(tiny_model, clean, corrupt.select([0, 1]), keep)
    with pytest.raises(InputError, match="4 of 4 corrupt continuations equal the clean ones"):
        edit(tiny_model, clean, clean, keep)
    with pytest.raises((InputError, TypeCheckError)):
        edit(tiny_model, clean, corrupt, keep, variant="paper")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="paragraphs are both in clean and in keep"):
        edit(tiny_model, clean, corrupt, clean)
    with pytest.raises(InputError, match="the mask is empty"):
        edit(tiny_model, clean, corrupt, keep, mask=Mask({}, mask.shapes))
    with pytest.raises(InputError, match="reproduces all 4 paragraphs already"):
        memorize(tiny_model, clean, keep)


def test_a_stop_rule_ends_what_is_learned_when_it_is_learned(tiny_model, paras, corrupt, mask):
    """Bounds of the targets are met from the other side than in unlearning."""
    clean, keep = paras
    training = Training(steps=200, learning_rate=2e-2)
    _, history = edit(tiny_model, clean, corrupt, keep, mask=mask, training=training, stop=Stop(target_em=3.0))
    assert history.ended == "stop rule" and history.target_em.values[-1] >= 3.0 > history.target_em.values[-2]
    _, history = memorize(tiny_model, keep, clean, mask=mask, training=training, stop=Stop(target_nll=2.0))
    assert history.ended == "stop rule" and history.target_nll.values[-1] <= 2.0 < history.target_nll.values[-2]
    with pytest.warns(RuntimeWarning, match="the edit taught nothing"):
        _, history = edit(
            tiny_model, clean, corrupt, keep, mask=mask, training=Training(steps=2, learning_rate=1e-6), stop=Stop()
        )
    assert history.ended == "steps" and history.sizes["step"] == 2


def test_a_rate_is_searched_for_what_is_taught_too(tiny_model, paras, corrupt):
    clean, keep = paras
    _, history = edit(tiny_model, clean, corrupt, keep, training=Training(steps=60))
    assert history.em_after > history.em_before + 1 and history.learning_rate in history.rates_tried
    assert len(history.rates_tried) == 3 and history.rate_choice.startswith("searched")
