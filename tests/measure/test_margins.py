import itertools

import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.measure import margins as module
from mechmem.measure.margins import Margins, margins, uncertain
from mechmem.measure.scores import leading_matches
from mechmem.model.lean.model import LeanModel


@pytest.fixture(scope="module")
def lean(tiny_model) -> LeanModel:
    return LeanModel(tiny_model)


@pytest.mark.parametrize("at_once", [61, 200, 10**6])
def test_margins_are_those_of_all_logits_whatever_is_held_at_once(lean, tiny_paragraphs, monkeypatch, at_once):
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", at_once)
    true = tiny_paragraphs.continuation
    hidden = lean.forward(tiny_paragraphs.tokens[:, :-1])[:, 12:]
    result = margins(lean, hidden, true)
    logits = lean.unembed(hidden)
    own = logits.gather(-1, true[..., None])[..., 0]
    others = logits.scatter(-1, true[..., None], -torch.inf)
    torch.testing.assert_close(result.margin, own - others.amax(-1))
    assert torch.equal(result.rival, others.argmax(-1))
    torch.testing.assert_close(result.token_nll, -logits.log_softmax(-1).gather(-1, true[..., None])[..., 0])
    assert torch.equal(result.matches(true), logits.argmax(-1) == true)
    without = margins(lean, hidden, true, nll=False)
    assert without.token_nll is None and torch.equal(without.margin, result.margin)


def test_of_equal_logits_the_lowest_id_matches():
    tie = Margins(torch.zeros(1, 2), torch.tensor([[5, 5]]), None)
    assert tie.matches(torch.tensor([[4, 6]])).tolist() == [[True, False]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_refused(lean, tiny_paragraphs, value):
    hidden = lean.forward(tiny_paragraphs.tokens[:, :-1])[:, 12:]
    hidden[2, 3, 4] = value
    with pytest.raises(InputError, match="NaN or infinite logits"):
        margins(lean, hidden, tiny_paragraphs.continuation)


def test_uncertain_is_whether_any_change_within_the_tolerance_changes_em():
    values = (-2.0, -0.5, 0.5, 2.0)
    rows = torch.tensor(list(itertools.product(values, repeat=4)))
    near, lost = uncertain(rows, 1.0)
    for row, is_near, is_lost in zip(rows.tolist(), near.tolist(), lost.tolist(), strict=True):
        signs = [(True, False) if abs(value) <= 1 else (value > 0,) for value in row]
        possible = {int(leading_matches(torch.tensor(choice))) for choice in itertools.product(*signs)}
        assert is_near == (len(possible) > 1), row
        assert is_lost == (4 not in possible), row
