"""Baselines against plain loops over each text."""

import math
import zlib

import numpy as np
import pytest
import torch
import xarray as xr

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.detect.evaluation.free_scores import MEANING, free_scores
from mechmem.detect.evaluation.ngram_counts import NgramCounts

KS = (0, 1, 2, 7, 10)
COUNTS = np.arange(61) ** 2


@pytest.fixture(scope="module")
def features(tiny_model, tiny_paragraphs) -> xr.Dataset:
    return mm.detection_features(
        tiny_model, tiny_paragraphs, features=("output", "prefix"), decoding=mm.DecodingSettings(ks=KS)
    )


@pytest.fixture(scope="module")
def documents(features, tiny_paragraphs) -> list[list[int]]:
    """A corpus that holds what the model says of two paragraphs, one of them twice."""
    texts = np.concatenate([tiny_paragraphs.prefix.numpy(), features.said.values], 1).tolist()
    return [texts[0], texts[0] + texts[4], [1, 2], []]


def plain_count(documents: list[list[int]], gram: list[int]) -> int:
    n = len(gram)
    return sum(document[at : at + n] == gram for document in documents for at in range(len(document) - n + 1))


def test_every_score_is_what_plain_loops_say(features, tiny_paragraphs, documents):
    found = free_scores(features, tiny_paragraphs, counts=COUNTS, ngrams=NgramCounts(documents, 3))
    assert (
        found.baseline.values.tolist() == list(MEANING) and found.attrs["higher"] == "the text is more likely recited"
    )
    for row in range(len(tiny_paragraphs)):
        whole = [*tiny_paragraphs.prefix[row].tolist(), *features.said.values[row].tolist()]
        for k in KS:
            nll, z = features.said_nll.values[row, :k].tolist(), features.said_z.values[row, :k].tolist()
            said = whole[13 : 13 + k]
            lowest = max(1, round(0.2 * k))
            now = dict(zip(features.statistic.values.tolist(), features.output.sel(k=k).values[row], strict=True))
            grams = [math.log(1 + plain_count(documents, whole[at - 2 : at + 1])) for at in range(13, 13 + k)]
            rare = [-math.log((COUNTS[token] + 1) / (COUNTS.sum() + 61)) for token in whole]
            packed = zlib.compress(np.array(said, "<u4").tobytes())
            prefix = dict(zip(features.prefix_statistic.values.tolist(), features.prefix.values[row], strict=True))
            wanted = {
                "top_1": math.exp(now["top_logprob"]),
                "margin": now["margin"],
                "entropy": -now["entropy"],
                "nll": -np.mean(nll) if k else 0.0,
                "mink": np.mean(sorted(-x for x in nll)[:lowest]) if k else 0.0,
                "minkpp": np.mean(sorted(z)[:lowest]) if k else 0.0,
                "zlib": 8 * len(packed) / sum(nll) if k else 0.0,
                "distinct": len(set(said)) / k if k else 0.0,
                "rarity": np.mean(rare[13 : 13 + k]) if k else 0.0,
                "ngrams": np.mean(grams) if k else 0.0,
                "prefix_nll": -prefix["mean_nll"],
                "prefix_mink": prefix["mink"],
                "prefix_minkpp": prefix["minkpp"],
                "prefix_rarity": np.mean(rare[:13]),
            }
            assert dict(zip(MEANING, found.sel(k=k).values[:, row].tolist(), strict=True)) == pytest.approx(wanted)
    # The control that n-grams were found: of the paragraphs in the corpus, and hardly of others.
    counted = found.sel(baseline="ngrams", k=10).values
    assert counted[0] > math.log(3) - 1e-6 and counted[4] >= math.log(2) - 1e-6 and counted.min() < 0.5


def test_scores_tell_recited_text_from_other(bundled_model, bundled):
    rows, decoding = bundled[::100], mm.DecodingSettings(ks=(0, 16), max_new_tokens=16)
    features = mm.detection_features(bundled_model, rows, features=("output", "prefix"), decoding=decoding)
    found = free_scores(features, rows, tokenizer=bundled_model.tokenizer, counts=mm.bundled_unigram_counts())
    recited = features.em.values == 16
    assert 10 < recited.sum() < len(rows) - 10
    for name in ("top_1", "margin", "entropy", "nll", "mink", "zlib", "prefix_nll"):
        values = found.sel(baseline=name, k=16).values
        assert np.median(values[recited]) > np.median(values[~recited]), name


def test_ngrams_end_where_they_should(documents):
    tokens = np.array([documents[0][:9], [60] * 9])
    for n in (1, 2, 5):
        found = NgramCounts(documents, n).ending_at(tokens)
        for row, ids in enumerate(tokens.tolist()):
            wanted = [0] * (n - 1) + [plain_count(documents, ids[at : at + n]) for at in range(10 - n)]
            assert found[row].tolist() == wanted


def test_other_paragraphs_and_missing_parts_are_refused(features, tiny_paragraphs):
    with pytest.raises(InputError, match="got features of other paragraphs"):
        free_scores(features, tiny_paragraphs[::-1])
    with pytest.raises(InputError, match="got features without output"):
        free_scores(features.drop_vars("output"), tiny_paragraphs)
    with pytest.raises(InputError, match=r"got the token id \d+ and 5 counts"):
        free_scores(features, tiny_paragraphs, counts=np.ones(5))
    with pytest.raises(InputError, match="got no document of at least 3 tokens"):
        NgramCounts([[1, 2], torch.tensor([3]).tolist()], 3)
    without = free_scores(features.drop_vars("prefix"), tiny_paragraphs)
    assert "prefix_nll" not in without.baseline and "rarity" not in without.baseline
