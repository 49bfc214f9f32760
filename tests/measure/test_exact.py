"""EM does not depend on how it was computed, and is that of real greedy decoding."""

import copy
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from mechmem.data.assets import bundled_paragraphs
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure import exact, tolerance
from mechmem.measure.decode import edit_distances, greedy_continuations
from mechmem.measure.exact import ExactScorer
from mechmem.measure.scores import score
from mechmem.model.hooks import with_hooks
from mechmem.model.load import load_model

PREFIX, LENGTH = 50, 100
MODES: list[dict[str, Any]] = [
    {},
    {"method": "cascade"},
    {"method": "cascade", "precision": "bfloat16"},
    {"method": "cascade", "stages": (1, 2, 30)},
]


def hooked_score(model: Any, paras: Paragraphs) -> Any:
    """Slow oracle: a hook that does nothing sends the paragraphs through the hooked forward, without calibration."""
    with with_hooks(model, {"blocks.0.hook_resid_pre": lambda value, hook: None}):  # noqa: ARG005
        return score(model, paras)


def decoded(reference: Any, prefix: torch.Tensor, count: int) -> torch.Tensor:
    """What transformers' own greedy decoding writes."""
    with torch.no_grad():
        text = reference.generate(
            prefix, attention_mask=torch.ones_like(prefix), do_sample=False, max_new_tokens=count, use_cache=True
        )
    return text[:, prefix.shape[1] :]


@pytest.fixture(scope="module")
def spoilt(tiny_pair) -> tuple[Paragraphs, np.ndarray, np.ndarray]:
    """Paragraphs of every EM from 0 to 50, in no order; their EM, and what is decoded at the first mismatch."""
    generator = torch.Generator().manual_seed(11)
    prefix = torch.randint(1, 61, (102, PREFIX), generator=generator)
    said = decoded(tiny_pair.reference, prefix, LENGTH - PREFIX)
    true = said.clone()
    for row in range(102):
        place = row % 51
        if place < 50:
            true[row, place] = (true[row, place] + 1 + row % 59) % 61
            true[row, place + 1 :] = torch.randint(0, 61, (49 - place,), generator=generator)
    wrong = (said != true).numpy()
    em = np.where(wrong.any(1), wrong.argmax(1), 50)
    assert sorted(set(em)) == list(range(51))
    rival = np.where(em < 50, said.numpy()[np.arange(102), em.clip(max=49)], -1)
    order = torch.randperm(102, generator=generator)
    return Paragraphs(torch.cat([prefix, true], 1)[order], PREFIX), em[order], rival[order]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("batch_size", [None, 7])
def test_em_is_that_of_greedy_decoding_whatever_the_way(tiny_model, spoilt, mode, batch_size):
    paras, em, rival = spoilt
    scores = ExactScorer(tiny_model, paras.select(np.arange(16)), batch_size=batch_size, **mode).score(paras)
    assert scores.em.tolist() == em.tolist() == hooked_score(tiny_model, paras).em.values.tolist()
    known = ~np.isnan(scores.nll)
    assert np.array_equal(scores.rival[known], rival[known]) and (scores.rival[~known] == -1).all()


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_nll_and_match_are_those_of_score_or_missing(tiny_model, spoilt, mode):
    paras, em, _ = spoilt
    seen: list[tuple[int, int]] = []
    scorer = ExactScorer(tiny_model, paras.select(np.arange(16)), batch_size=40, **mode)
    scores = scorer.score(paras, lambda *state: seen.append(state))
    expected = hooked_score(tiny_model, paras)
    known = ~np.isnan(scores.nll)
    assert known[em == 50].all() and known.all() == (mode == {})
    assert np.array_equal(np.isnan(scores.match_fraction), ~known)
    np.testing.assert_allclose(scores.nll[known], expected.nll.values[known], rtol=1e-4)
    np.testing.assert_allclose(scores.match_fraction[known], expected.match.mean("pos").values[known], atol=1e-6)
    assert seen == [(40, 102), (80, 102), (102, 102)]


def test_a_cascade_stops_only_where_the_paragraph_is_lost(tiny_model, spoilt):
    paras, em, _ = spoilt
    scores = ExactScorer(tiny_model, paras.select(np.arange(16)), method="cascade", stages=(4, 14)).score(paras)
    assert np.isnan(scores.nll)[em < 14].all() and not np.isnan(scores.nll)[em >= 14].any()


@pytest.fixture(scope="module")
def tied(tiny_model):
    """Every token has a twin 30 ids later whose logit is larger by less than float32 shows, in float64 always."""
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.unembed.W_U[:, 31:] = model.unembed.W_U[:, 1:31]
        model.unembed.b_U[31:] = model.unembed.b_U[1:31]
    return model


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_exact_ties_go_to_the_lowest_id_in_every_way(tied, mode, batch_size):
    prefix = torch.randint(1, 61, (12, PREFIX), generator=torch.Generator().manual_seed(0))
    text = prefix
    with torch.no_grad():
        for _ in range(LENGTH - PREFIX):
            logits = tied(text, padding_side="right")[:, -1].double()
            text = torch.cat([text, logits[:, :31].argmax(-1, keepdim=True)], 1)
    twins = text.clone()
    twins[6:, PREFIX + 3] += 30 * (twins[6:, PREFIX + 3] > 0)
    rows = (twins[:, PREFIX + 3] == text[:, PREFIX + 3]).numpy()
    paras = Paragraphs(twins, PREFIX)
    scorer = ExactScorer(tied, paras, batch_size=batch_size, **mode)
    scores = scorer.score(paras)
    assert scores.em.tolist() == [50 if same else 3 for same in rows] and not rows.all()
    assert scorer.settled["float64"] >= 12, "a tie is within every tolerance"


def test_near_ties_are_what_float64_says(tiny_pair):
    """Twins whose logits differ in the seventh digit: float32 sums may fall either way, float64 does not."""
    reference = copy.deepcopy(tiny_pair.reference)
    with torch.no_grad():
        head = reference.lm_head.weight
        reference.lm_head.weight = torch.nn.Parameter(head.clone())
        reference.lm_head.weight[31:] = head[1:31] * (
            1 + 2e-7 * torch.randn(30, 1, generator=torch.Generator().manual_seed(1))
        )
    model = copy.deepcopy(tiny_pair.hooked)
    with torch.no_grad():
        model.unembed.W_U.copy_(reference.lm_head.weight.T)
    wide = copy.deepcopy(reference).double()
    prefix = torch.randint(1, 61, (24, PREFIX), generator=torch.Generator().manual_seed(0))
    text = prefix
    with torch.no_grad():
        for _ in range(LENGTH - PREFIX):
            text = torch.cat([text, wide(text).logits[:, -1:].argmax(-1)], 1)
    paras = Paragraphs(text, PREFIX)
    for mode in MODES:
        for batch_size in (1, 24):
            scorer = ExactScorer(model, paras.select(np.arange(16)), batch_size=batch_size, **mode)
            assert scorer.score(paras).em.tolist() == [50] * 24
    assert hooked_score(model, paras).em.values.tolist() != [50] * 24, "float32 was to fall the other way somewhere"


@pytest.mark.parametrize("mode", MODES[1:3], ids=str)
def test_no_memorized_paragraph_of_the_bundled_model_is_lost(mode):
    model, known = load_model("bundled"), bundled_paragraphs()
    paras = known.select(np.random.default_rng(1).permutation(len(known))[:240])
    expected = hooked_score(model, paras).em.values
    scorer = ExactScorer(model, paras.select(np.arange(16)), **mode)
    assert scorer.score(paras).em.tolist() == expected.tolist() and 40 < (expected == 50).sum() < 200
    if mode.get("precision") == "bfloat16":
        assert 0 < scorer.settled["float32"] < 240, "a filter that lets everything through is none"


def test_no_memorized_paragraph_of_a_random_model_of_the_125m_shape_is_lost(small_model):
    """Its margins are tiny, so bfloat16 alone would lose most of what it would itself write in float32."""
    model = small_model(
        **{"n_layers": 12, "n_heads": 12, "d_model": 768, "d_head": 64, "d_mlp": 3072, "n_ctx": 128, "d_vocab": 50257},
        **{"use_local_attn": True, "attn_types": ["global", "local"] * 6, "window_size": 256},
        **{"act_fn": "gelu_new", "use_attn_scale": False},
    )
    tokens = torch.randint(0, 50257, (6, LENGTH), generator=torch.Generator().manual_seed(0))
    scorer = ExactScorer(model, Paragraphs(tokens[:4], PREFIX), method="cascade", precision="bfloat16")
    nothing = np.zeros(4, dtype=int)
    first = scorer.lean.unembed(scorer.lean.forward(tokens[:4, :PREFIX])[:, -1]).argmax(-1).numpy()
    tokens[:4, PREFIX:] = torch.from_numpy(greedy_continuations(scorer.lean, tokens[:4], PREFIX, nothing, first))
    tokens[3, 70] = (tokens[3, 70] + 1) % 50257
    paras = Paragraphs(tokens, PREFIX)
    assert hooked_score(model, paras).em.values.tolist() == [50, 50, 50, 20, 0, 0]
    assert scorer.score(paras).em.tolist() == [50, 50, 50, 20, 0, 0]
    # The control: believed without a tolerance, bfloat16 loses some of them.
    scorer.tolerance["bfloat16"] = 0.0
    assert (scorer.score(paras).em[:3] < 50).any()


def test_products_that_are_no_float32_are_found_out_and_left(tiny_model, spoilt, monkeypatch):
    calls = []

    @contextmanager
    def lossy(device):  # noqa: ARG001
        calls.append(1)
        weights = tiny_model.unembed.W_U.data.clone()
        tiny_model.unembed.W_U.data.copy_(weights.bfloat16())
        yield
        tiny_model.unembed.W_U.data.copy_(weights)

    monkeypatch.setattr(exact, "fast_float32", lossy)
    monkeypatch.setattr(tolerance, "_known", {})
    paras, em, _ = spoilt
    scorer = ExactScorer(tiny_model, paras.select(np.arange(16)))
    used = len(calls)
    assert used == 1 and scorer.tolerance["float32"] < 1e-3
    assert scorer.score(paras).em.tolist() == em.tolist() and len(calls) == used


def test_no_paragraph_has_no_scores(tiny_model, tiny_paragraphs):
    scores = ExactScorer(tiny_model, tiny_paragraphs).score(tiny_paragraphs.select(np.zeros(0, dtype=int)))
    assert len(scores.em) == len(scores.nll) == len(scores.rival) == 0


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ({"method": "half"}, "a method of full, cascade"),
        ({"precision": "float16"}, "a precision of float32, bfloat16"),
        ({"precision": "bfloat16"}, "need the method 'cascade' with it"),
    ],
)
def test_ways_that_are_unknown_are_refused(mode, sentence):
    with pytest.raises(InputError, match=sentence):
        exact.check_method(**{"method": "full", "precision": "float32"} | mode)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"batch_size": 0}, "batch_size is 0; need at least 1"),
        ({"stages": ()}, r"stages are \(\); need rising numbers"),
        ({"stages": (4, 4)}, "need rising numbers of continuation tokens"),
        ({"stages": (0, 4)}, "need rising numbers of continuation tokens"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(tiny_model, tiny_paragraphs, sizes, sentence):
    with pytest.raises(InputError, match=sentence):
        ExactScorer(tiny_model, tiny_paragraphs, **sizes)


def test_no_calibration_is_refused(tiny_model, tiny_paragraphs):
    with pytest.raises(InputError, match="got 0 paragraphs to calibrate on; need at least 1"):
        ExactScorer(tiny_model, tiny_paragraphs.select(np.zeros(0, dtype=int)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_model_of_sixteen_bits_is_scored_as_its_weights_in_float64_say(tiny_model, spoilt, dtype, mode):
    narrow = copy.deepcopy(tiny_model).to(dtype)
    paras, _, _ = spoilt
    scores = ExactScorer(narrow, paras.select(np.arange(16)), **mode).score(paras)
    wide = copy.deepcopy(narrow).to(torch.float64)
    assert scores.em.tolist() == hooked_score(wide, paras).em.values.tolist()
    assert len(set(scores.em.tolist())) > 5


@pytest.mark.parametrize("batch_size", [1, 10, 102])
def test_what_follows_the_first_mismatch_is_decoded(tiny_pair, spoilt, batch_size):
    paras, em, rival = spoilt
    scorer = ExactScorer(tiny_pair.hooked, paras.select(np.arange(16)))
    seen: list[tuple[int, int]] = []
    said = greedy_continuations(
        scorer.lean, paras.tokens, PREFIX, em, rival, batch_size=batch_size, progress=lambda *s: seen.append(s)
    )
    assert np.array_equal(said, decoded(tiny_pair.reference, paras.prefix, 50).numpy())
    assert seen[-1] == (100, 100), "two are memorized and need no decoding"
    # The control: a wrong rival would be seen.
    other = greedy_continuations(scorer.lean, paras.tokens, PREFIX, em, (rival + 1) % 61)
    assert not np.array_equal(other, said)


def plain_distance(first: list[int], second: list[int]) -> int:
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def test_edit_distance_counts_insertions_deletions_and_substitutions():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, (40, 12))
    second = np.where(rng.random((40, 12)) < 0.3, rng.integers(0, 5, (40, 12)), np.roll(first, 1, axis=1))
    expected = [plain_distance(*pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    assert edit_distances(first, second).tolist() == expected and len(set(expected)) > 4
    assert edit_distances(np.array([[1, 2, 3]]), np.array([[2, 3, 4]])).tolist() == [2]
