from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.attacks.sampling import at_least_once, sampling_attack

DRAWS = 40_000


def sample(model, prefix: torch.Tensor, count: int, temperature: float, top_k: int | None) -> torch.Tensor:
    """Monte Carlo: continuations drawn token by token, [draw, pos]; equal texts share their forward."""
    generator = torch.Generator().manual_seed(4)
    texts = prefix.repeat(DRAWS, 1)
    for _ in range(count):
        unique, which = texts.unique(dim=0, return_inverse=True)
        logits = torch.cat([model(part)[:, -1] for part in unique.split(512)]) / temperature
        if top_k is not None:
            below = logits.argsort(-1, descending=True)[:, top_k:]
            logits = logits.scatter(-1, below, -torch.inf)
        token = logits.softmax(-1)[which].multinomial(1, generator=generator)
        texts = torch.cat([texts, token], 1)
    return texts[:, len(prefix) :]


@pytest.fixture(scope="module")
def paras(tiny_model) -> Paragraphs:
    """Two likely continuations of two tokens, one with an unlikely second token."""
    tokens = torch.randint(0, 61, (3, 8), generator=torch.Generator().manual_seed(6))
    for row, second in enumerate((1, 3, 30)):
        tokens[row, 6] = tiny_model(tokens[row : row + 1, :6])[0, -1].argsort(descending=True)[row]
        tokens[row, 7] = tiny_model(tokens[row : row + 1, :7])[0, -1].argsort(descending=True)[second]
    return Paragraphs(tokens, 6)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (1.7, None), (2.0, 5), (0.5, 2)])
def test_probabilities_are_those_of_monte_carlo(tiny_model, paras, temperature, top_k):
    found = sampling_attack(tiny_model, paras, draws=(1, 8), temperature=temperature, top_k=top_k, batch_size=2)
    for row in range(2):
        said = sample(tiny_model, paras.prefix[row], 2, temperature, top_k)
        em = (said == paras.continuation[row]).long().cumprod(-1).sum(-1).numpy()
        groups = em.reshape(-1, 8).max(1)
        for column, tries in enumerate((em, groups)):
            error = 5 * max(tries.std(), 0.01) / np.sqrt(len(tries))
            assert float(found.em_best[row, column]) == pytest.approx(tries.mean(), abs=error)
            assert float(found.probability[row, column]) == pytest.approx((tries == 2).mean(), abs=error)
    if top_k is None:
        assert (0.001 < found.probability.sel(draws=8).values[:2]).all()


def test_a_token_that_is_never_sampled_ends_what_can_be_extracted(tiny_model, paras):
    cut = sampling_attack(tiny_model, paras, draws=(1, 10**9), top_k=10)
    assert cut.log_probability[2] == -np.inf and (cut.probability[2] == 0).all()
    # The first token can be drawn, and with enough draws is; the second never.
    assert cut.em_best[2, 1] == pytest.approx(1.0)
    whole = sampling_attack(tiny_model, paras, draws=(1, 10**9), top_k=None)
    assert np.isfinite(whole.log_probability[2]) and whole.probability[2, 1] > 0
    assert sampling_attack(tiny_model, paras, top_k=61).equals(sampling_attack(tiny_model, paras, top_k=10**6))


def test_cold_sampling_is_greedy_decoding(tiny_model, paras):
    text = paras.tokens.clone()
    text[:, 6] = tiny_model(text[:, :6])[:, -1].argmax(-1)
    text[:, 7] = tiny_model(text[:, :7])[:, -1].argmax(-1)
    greedy = sampling_attack(tiny_model, Paragraphs(text, 6), draws=(1,), temperature=1e-4)
    other = sampling_attack(tiny_model, paras, draws=(1,), temperature=1e-4)
    assert np.allclose(greedy.probability, 1) and np.allclose(greedy.em_best, 2)
    assert (other.probability < 1e-6).all()


def test_small_probabilities_are_not_lost():
    for q in ("0.3", "1e-9", "1e-20", "1e-200"):
        for draws in (1, 7, 1000, 10**12):
            with localcontext() as context:
                context.prec = 400
                exact = 1 - (1 - Decimal(q)) ** draws
            log_q = np.array([float(Decimal(q).ln())])
            found = at_least_once(log_q, np.array([draws]))[0]
            # The logarithm of 1e-200 itself is only known to 1e-13.
            assert found == pytest.approx(float(exact), rel=1e-12)
    assert 1 - (1 - 1e-20) ** 10**12 == 0  # what is avoided
    assert at_least_once(np.array([0.0, -np.inf, 1e-9]), np.array([5])).tolist() == [1, 0, 1]


def test_bad_input_is_refused(tiny_model, paras):
    for draws in ((), (0,), (3, -1)):
        with pytest.raises(InputError, match="got no number of draws|as draws.*need a whole number of at least 1"):
            sampling_attack(tiny_model, paras, draws=draws)
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="need a finite number above 0"):
            sampling_attack(tiny_model, paras, temperature=temperature)
    with pytest.raises(InputError, match="got 0 as top_k"):
        sampling_attack(tiny_model, paras, top_k=0)
