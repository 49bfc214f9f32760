import copy

import numpy as np
import pytest
import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.scores import kl, memorized_other, score, score_logits, split

PREFIX, LENGTH = 50, 100


def greedy_text(reference, prefix: torch.Tensor) -> torch.Tensor:
    """What transformers' own greedy decoding writes, token by token."""
    with torch.no_grad():
        text = reference.generate(
            prefix, attention_mask=torch.ones_like(prefix), do_sample=False, max_new_tokens=LENGTH - PREFIX
        )
    return text[:, PREFIX:]


@pytest.fixture(scope="module")
def corrupted(tiny_pair):
    """The model's own text for 255 prefixes, spoilt from one place on: five paragraphs for each EM from 0 to 50."""
    generator = torch.Generator().manual_seed(7)
    prefix = torch.randint(0, 61, (255, PREFIX), generator=generator)
    written = greedy_text(tiny_pair.reference, prefix)
    continuation = written.clone()
    for row in range(255):
        place = row % 51
        if place < 50:
            shift = torch.randint(1, 61, (1,), generator=generator)
            continuation[row, place] = (continuation[row, place] + shift) % 61
            later = torch.randint(0, 61, (49 - place,), generator=generator)
            continuation[row, place + 1 :] = torch.where(later % 2 == 0, continuation[row, place + 1 :], later)
    return Paragraphs(torch.cat([prefix, continuation], 1), PREFIX), written


def test_em_is_that_of_real_greedy_decoding(tiny_pair, corrupted):
    paras, written = corrupted
    em = score(tiny_pair.hooked, paras, batch_size=64).em.values
    matches = (written == paras.continuation).numpy()
    expected = [int(np.argmin(row)) if not row.all() else 50 for row in matches]
    assert em.tolist() == expected
    assert sorted(set(em.tolist())) == list(range(51)), "the paragraphs were to have every EM there is"


def test_greedy_is_the_decoded_text_up_to_and_including_the_first_mismatch(tiny_pair, corrupted):
    paras, written = corrupted
    scores = score(tiny_pair.hooked, paras)
    for row, em in enumerate(scores.em.values):
        assert np.array_equal(scores.greedy.values[row, : em + 1], written[row, : em + 1].numpy())
    assert np.array_equal(scores.match.values, scores.greedy.values == paras.continuation.numpy())


def slow_nll(model, tokens: torch.Tensor, first_column: int) -> list[list[float]]:
    """One paragraph, one token at a time, from the logits of every position."""
    result = []
    for row in tokens:
        probabilities = model(row[None])[0].detach().double().softmax(-1)
        targets = range(first_column + 1, len(row))
        result.append([-float(probabilities[target - 1, row[target]].log()) for target in targets])
    return result


def test_nll_is_that_of_the_slow_obvious_loop_and_not_of_the_columns_one_later(tiny_model, tiny_paragraphs):
    scores = score(tiny_model, tiny_paragraphs, batch_size=4)
    expected = np.array(slow_nll(tiny_model, tiny_paragraphs.tokens, 12))
    np.testing.assert_allclose(scores.token_nll, expected, rtol=1e-4)
    np.testing.assert_allclose(scores.nll, expected.mean(1), rtol=1e-4)
    assert scores.pos.values.tolist() == list(range(13, 23))
    one_later = np.array(slow_nll(tiny_model, tiny_paragraphs.tokens, 13)).mean(1)
    assert not np.allclose(scores.nll, one_later, rtol=1e-2)


def test_em_of_the_columns_one_later_would_differ(tiny_pair, corrupted):
    paras, _ = corrupted
    shifted = Paragraphs(paras.tokens, PREFIX + 1)
    one_later = score(tiny_pair.hooked, shifted).em.values
    # A paragraph whose first continuation token is wrong has EM 0; skipping that token hides it.
    wrong_first = score(tiny_pair.hooked, paras).em.values == 0
    assert wrong_first.sum() == 5 and not np.array_equal(one_later[wrong_first], np.zeros(5))


def test_batch_size_does_not_matter_and_progress_counts_paragraphs(tiny_model, tiny_paragraphs):
    seen: list[tuple[int, int]] = []
    one = score(tiny_model, tiny_paragraphs, batch_size=4, progress=lambda done, total: seen.append((done, total)))
    xr.testing.assert_allclose(one, score(tiny_model, tiny_paragraphs, batch_size=11), rtol=1e-5)
    assert seen == [(4, 11), (8, 11), (11, 11)]


def test_of_equal_logits_the_lowest_id_is_taken(tiny_model, tiny_paragraphs):
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.unembed.W_U[:, 31:] = model.unembed.W_U[:, :30]
        model.unembed.b_U[31:] = model.unembed.b_U[:30]
    assert set(score(model, tiny_paragraphs).greedy.values.ravel().tolist()) <= set(range(31))


def test_sixteen_bit_logits_are_averaged_in_thirty_two():
    logits = torch.randn(3, 7, 61, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.randint(0, 61, (3, 7))
    exact = -logits.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0].mean(-1)
    torch.testing.assert_close(score_logits(logits, targets)["nll"].double(), exact, rtol=1e-6, atol=0)


def test_scores_go_through_netcdf(tiny_model, tiny_paragraphs, tmp_path):
    scores = score(tiny_model, tiny_paragraphs)
    scores.to_netcdf(tmp_path / "s.nc", engine="h5netcdf")
    read = xr.load_dataset(tmp_path / "s.nc", engine="h5netcdf")
    xr.testing.assert_identical(read, scores)
    assert read.match.dtype == bool and read.nll.attrs["units"] == "nats per token"


def made_up(em: list[int], length: int) -> xr.Dataset:
    values = {"em": ("paragraph", np.array(em)), "nll": ("paragraph", np.zeros(len(em)))}
    return xr.Dataset(values | {"match": (("paragraph", "pos"), np.ones((len(em), length)))})


@pytest.mark.parametrize(
    ("length", "em", "memorized", "other"),
    [(50, [50, 49, 11, 10, 0], [0], [3, 4]), (9, [9, 8, 2, 1, 0], [0], [3, 4]), (4, [4, 3, 1, 0, 4], [0, 4], [3])],
)
def test_split_takes_all_matches_and_at_most_a_fifth(length, em, memorized, other):
    paras = Paragraphs(torch.arange(5)[:, None].repeat(1, length + 3), 3)
    first, second = split(paras, made_up(em, length).assign_coords(paragraph=paras.ids))
    assert first.column("em").tolist() == [em[row] for row in memorized]
    assert first.tokens[:, 0].tolist() == memorized and second.tokens[:, 0].tolist() == other
    assert [np.flatnonzero(m).tolist() for m in memorized_other(np.array(em), length)] == [memorized, other]


def test_split_refuses_scores_of_other_paragraphs(tiny_model, tiny_paragraphs):
    scores = score(tiny_model, tiny_paragraphs)
    with pytest.raises(InputError, match="2 of 11 paragraphs are not in this result"):
        split(tiny_paragraphs, scores.isel(paragraph=slice(0, 9)))
    with pytest.raises(InputError, match="scores of 10 continuation tokens for paragraphs with 9"):
        split(Paragraphs(tiny_paragraphs.tokens, 14), scores)
    with pytest.raises(InputError, match="no ids; need a coordinate 'paragraph'"):
        split(tiny_paragraphs, scores.drop_vars("paragraph"))


def test_scores_are_joined_by_paragraph_and_not_by_row(tiny_model, tiny_paragraphs):
    """Subtracting the scores of some paragraphs, in another order, compares each paragraph with itself."""
    scores = score(tiny_model, tiny_paragraphs)
    chosen = tiny_paragraphs.select([7, 2, 9])
    difference = abs(score(tiny_model, chosen).nll - scores.nll)
    assert difference.sizes["paragraph"] == 3 and float(difference.max()) < 1e-5
    by_row = np.abs(score(tiny_model, chosen).nll.values - scores.nll.values[:3])
    assert by_row.max() > 0.01
    order = np.argsort(scores.em.values, kind="stable")[::-1]
    reordered = tiny_paragraphs.select(order)
    for ours, theirs in zip(split(reordered, scores), split(tiny_paragraphs, scores), strict=True):
        assert sorted(ours.ids.tolist()) == sorted(theirs.ids.tolist())


def test_score_refuses_what_the_model_cannot_read(tiny_model):
    with pytest.raises(InputError, match="got the token id 61 for a model with a vocabulary of 61 tokens"):
        score(tiny_model, Paragraphs(torch.full((2, 20), 61), 10))


def test_kl_is_the_sum_over_the_vocabulary_and_zero_for_the_same_model(tiny_model, tiny_paragraphs):
    after = copy.deepcopy(tiny_model)
    with torch.no_grad():
        after.blocks[1].mlp.W_out *= 1.3
    result = kl(tiny_model, after, tiny_paragraphs, batch_size=4)
    p_0, p = (m(tiny_paragraphs.tokens).double().softmax(-1)[:, 12:-1] for m in (tiny_model, after))
    expected = (p_0 * (p_0 / p).log()).sum(-1).mean(-1).detach()
    np.testing.assert_allclose(result.values, expected, rtol=1e-3)
    # KL is not symmetric: the other order must be told apart.
    assert not np.allclose(kl(after, tiny_model, tiny_paragraphs), expected, rtol=1e-2)
    assert float(abs(kl(tiny_model, tiny_model, tiny_paragraphs)).max()) < 1e-6
