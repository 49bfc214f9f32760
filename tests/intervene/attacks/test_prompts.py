import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.attacks.prompts import near_duplicate_attack, perturbed_prefix_attack, prefix_length_attack
from mechmem.measure.replacements import replacements
from mechmem.measure.scores import score

PREFIX, LENGTH = 7, 13


def decode(model, prompt: torch.Tensor, count: int) -> list[int]:
    """Slow oracle: greedy decoding with a whole forward for every token."""
    text = prompt.clone()
    for _ in range(count):
        text = torch.cat([text, model(text[None])[0, -1].argmax()[None]])
    return text[len(prompt) :].tolist()


def leading(said: list[int], true: list[int]) -> int:
    wrong = [i for i, (a, b) in enumerate(zip(said, true, strict=True)) if a != b]
    return wrong[0] if wrong else len(true)


@pytest.fixture(scope="module")
def known(tiny_model) -> Paragraphs:
    """Five paragraphs that the model says by itself, and two that it does not."""
    prefixes = torch.randint(0, 61, (7, PREFIX), generator=torch.Generator().manual_seed(2))
    said = torch.tensor([decode(tiny_model, prefix, LENGTH - PREFIX) for prefix in prefixes])
    said[5:] = torch.randint(0, 61, (2, LENGTH - PREFIX), generator=torch.Generator().manual_seed(3))
    clusters = [0, 0, 1, 1, 2, 3, 3]
    return Paragraphs(torch.cat([prefixes, said], 1), PREFIX).with_columns(cluster=clusters)


def test_perturbed_prefixes_are_scored_as_decoding_says(tiny_model, known):
    draws, seen = 4, []
    found = perturbed_prefix_attack(
        tiny_model, known, draws=draws, seed=5, batch_size=3, progress=lambda *d: seen.append(d)
    )
    drawn = replacements(tiny_model, known, "random", samples=draws, seed=5)
    em, match = np.zeros((draws, len(known))), np.zeros((draws, len(known)))
    for draw, row in np.ndindex(em.shape):
        tokens = known.tokens[row].clone()
        place = int(found.changed_pos[draw, row])
        assert drawn[draw, row, place] != tokens[place]
        tokens[place] = int(drawn[draw, row, place])
        true = tokens[PREFIX:].tolist()
        em[draw, row] = leading(decode(tiny_model, tokens[:PREFIX], len(true)), true)
        match[draw, row] = (tiny_model(tokens[None])[0, PREFIX - 1 : -1].argmax(-1) == tokens[PREFIX:]).float().mean()
    assert found.em.values.tolist() == em.tolist()
    assert found.em_best.values.tolist() == em.max(0).tolist()
    assert np.allclose(found.em_mean, em.mean(0)) and np.allclose(found.match_best, match.max(0))
    # The oracle had something to disagree about.
    assert 0 < em.mean() < 6 and (em.max(0) > em.mean(0)).any()
    assert seen[-1] == (28, 28)


def test_every_place_comes_before_any_comes_again_and_a_seed_decides(tiny_model, known):
    found = perturbed_prefix_attack(tiny_model, known, draws=2 * PREFIX + 1, seed=1)
    for row in range(len(known)):
        places = found.changed_pos.values[:, row]
        assert sorted(places[:PREFIX]) == sorted(places[PREFIX : 2 * PREFIX]) == list(range(PREFIX))
    again, other = (perturbed_prefix_attack(tiny_model, known, draws=2 * PREFIX + 1, seed=s) for s in (1, 2))
    assert again.identical(found) and not other.changed_pos.equals(found.changed_pos)
    assert len({tuple(column) for column in found.changed_pos.values.T}) == len(known)


def test_shorter_and_longer_prompts_are_what_decoding_says(tiny_model, known):
    lengths = [2, PREFIX, PREFIX + 1, PREFIX + 4, LENGTH - 1]
    found = prefix_length_attack(tiny_model, known, lengths=lengths)
    for column, given in enumerate(lengths):
        for row, tokens in enumerate(known.tokens):
            prompt = tokens[PREFIX - given : PREFIX] if given <= PREFIX else tokens[:given]
            true = tokens[max(PREFIX, given) :].tolist()
            em = leading(decode(tiny_model, prompt, len(true)), true)
            assert found.em[row, column] == em
            assert found.em_share[row, column] == em / len(true)
            logits = tiny_model(torch.cat([prompt, torch.tensor(true)])[None])[0, len(prompt) - 1 : -1]
            log_probs = logits.log_softmax(-1)[torch.arange(len(true)), true]
            assert float(found.nll[row, column]) == pytest.approx(-log_probs.mean().item(), abs=1e-5)
            assert float(found.match[row, column]) == pytest.approx(
                (logits.argmax(-1) == torch.tensor(true)).float().mean().item()
            )
    assert found.remaining.values.tolist() == [6, 6, 5, 2, 1]
    assert found.em.sel(given=PREFIX).values.tolist() == score(tiny_model, known).em.values.tolist() == [6] * 5 + [0, 0]
    assert (found.em.sel(given=2) < 6).any()
    assert prefix_length_attack(tiny_model, known).given.values.tolist() == [2, 4, 7, 8, 9, 10]


def test_near_duplicates_are_asked_for_their_text_and_for_the_target(tiny_model, known):
    targets, near = known.select([0, 2, 4, 5]), known.select([1, 3, 6, 0])
    found = near_duplicate_attack(tiny_model, targets, near)
    # Row 0 of the targets is among the near-duplicates itself: its own prompt does not count.
    pairs = {0: [1], 1: [3], 2: [], 3: [6]}
    assert found.near.values.tolist() == [1, 1, 0, 1] and found.cluster.values.tolist() == [0, 1, 2, 3]
    for row, others in pairs.items():
        if not others:
            assert np.isnan(found.target_em_best[row]) and np.isnan(found.own_em_mean[row])
            continue
        prompt, own = known.prefix[others[0]], known.continuation[others[0]].tolist()
        said = decode(tiny_model, prompt, 6)
        assert found.own_em_best[row] == leading(said, own)
        assert found.target_em_best[row] == leading(said, targets.continuation[row].tolist())
    assert found.own_em_best.values[[0, 1, 3]].tolist() == [6, 6, 0]


def test_near_duplicates_of_one_target_are_summed_up(tiny_model, known):
    """Three prompts for one target: two of them are known to lead to its text, for it is what the model says there."""
    prompts = known.prefix[[0, 1, 5]]
    text = known.continuation[[0]]
    near = Paragraphs(torch.cat([prompts, text.repeat(3, 1)], 1), PREFIX).with_columns(cluster=[8, 8, 8])
    target = Paragraphs(torch.cat([known.prefix[[4]], text], 1), PREFIX).with_columns(cluster=[8])
    found = near_duplicate_attack(tiny_model, target, near)
    each = [leading(decode(tiny_model, prompt, 6), text[0].tolist()) for prompt in prompts]
    assert max(each) == 6 > np.mean(each)
    assert found.target_em_best.item() == 6 and found.target_em_mean.item() == pytest.approx(np.mean(each))
    assert found.target_match_best.item() == 1 and found.near.item() == 3


def test_bad_input_is_refused(tiny_model, known):
    with pytest.raises(InputError, match="got 0 as draws"):
        perturbed_prefix_attack(tiny_model, known, draws=0)
    for lengths in ([0], [LENGTH], [3, 3], []):
        with pytest.raises(
            InputError, match=rf"need different numbers from 1 to {LENGTH - 1}|got 0 as lengths\[0\]; need"
        ):
            prefix_length_attack(tiny_model, known, lengths=lengths)
    with pytest.raises(InputError, match="none of 2 near-duplicates has a target's cluster and another prefix"):
        near_duplicate_attack(tiny_model, known.select([0]), known.select([0, 2]))
    with pytest.raises(InputError, match="no column 'cluster'"):
        near_duplicate_attack(tiny_model, known, Paragraphs(known.tokens, PREFIX))
    with pytest.raises(InputError, match=r"near-duplicates of \(prefix, continuation\) \(6, 7\)"):
        near_duplicate_attack(tiny_model, known, Paragraphs(known.tokens, PREFIX - 1, known.table))
