"""Training from decoded text: truth is what the model says, a stopped training goes on, mistakes are sentences."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.detect.training import decoded_parts
from mechmem.detect.training.candidates import candidate_depths, candidates_of, union
from mechmem.detect.training.predictable import predictable_copies, repeated_prefixes
from mechmem.detect.training.training_texts import prefix_hashes, training_texts
from tests.detect.reciting import PREFIX, reciting, together

SMALL = mm.DetectorSettings(ks=(0, 2, 5), trees=4, tree_depth=2, folds=2, penalties=(0.3, 1.0))


@pytest.fixture(scope="module")
def sets(tiny_model):
    return reciting(tiny_model, 40)


@pytest.fixture(scope="module")
def detector(tiny_model, sets):
    return mm.train_detector(tiny_model, *sets, settings=SMALL)


def test_a_detector_of_texts_that_differ_tells_them_apart(tiny_model, detector):
    new = together(*reciting(tiny_model, 20, seed=7))
    found = mm.evaluate_detector(detector, tiny_model, new, settings=mm.EvaluationSettings(ks=(0, 5), draws=50))
    first, late = found.auroc.sel({"method": "detector"}).values
    assert first > 0.9 and late > 0.6, "the last token of the prefix tells; after five tokens less is left of it"
    assert detector.choice.groups[:2] == ("output", "prefix") and detector.generation_len == 10
    assert len(detector.notes["candidates"]) == 5 and detector.notes["looks"] == list(range(10))


def test_texts_that_do_not_differ_are_not_told_apart(tiny_model):
    # The same prefixes' distribution in both sets: nothing but luck is left.
    low, high = reciting(tiny_model, 60, seed=3)
    own = torch.cat([low.tokens, high.tokens])
    own[60:, PREFIX] = (own[60:, PREFIX] - 1) % 61
    rng = np.random.default_rng(0)
    recited = rng.permutation(120)[:60]
    other = np.setdiff1d(np.arange(120), recited)
    strange = own[other].clone()
    strange[:, PREFIX] = (strange[:, PREFIX] + 1) % 61
    memorized, others = mm.Paragraphs(own[recited], PREFIX), mm.Paragraphs(strange, PREFIX)
    parts = [each.with_columns(cluster=at * 1000 + np.arange(60)) for at, each in enumerate((memorized, others))]
    settings = mm.DetectorSettings(ks=(0, 4), predictable=0.0)
    trained = mm.train_detector(tiny_model, parts[0][:40], parts[1][:40], features="output", settings=settings)
    test = together(parts[0][40:], parts[1][40:])
    found = mm.evaluate_detector(trained, tiny_model, test, settings=mm.EvaluationSettings(ks=(0, 4), draws=200))
    of_it = found.sel({"method": "detector"})
    assert ((of_it.auroc_low <= 0.5) & (of_it.auroc_high >= 0.5)).all()


def test_truth_is_what_the_model_says_and_not_the_set(tiny_model, sets):
    memorized, other = sets
    wrong = together(memorized, other[:4])
    trained = mm.train_detector(tiny_model, wrong, other[4:], features="output", method="logistic", settings=SMALL)
    counts = [trained.notes[name] for name in ("fitted_on", "calibrated_on")]
    assert sum(each["memorized"] for each in counts) <= 40


def test_between_is_left_out_and_counted(tiny_model, sets):
    memorized, other = sets
    tokens = memorized.tokens.clone()
    # Half of the continuation is right: neither recited nor other.
    tokens[:6, PREFIX + 5] = (tokens[:6, PREFIX + 5] + 1) % 61
    half = mm.Paragraphs(tokens, PREFIX).with_columns(cluster=memorized.clusters)
    trained = mm.train_detector(tiny_model, half, other, features="output", method="logistic", settings=SMALL)
    # Those of the part for the threshold were not decoded.
    assert 0 < trained.notes["left_out"] <= 6


def test_predictable_copies_repeat_their_beginning(sets):
    _, other = sets
    prefix = repeated_prefixes(other, 0)
    for row, original in zip(prefix, other.prefix, strict=True):
        periods = [p for p in range(1, PREFIX + 1) if torch.equal(row, row[torch.arange(PREFIX) % p])]
        assert periods and periods[0] <= 6 and row[0] == original[0]
    copies, rows = predictable_copies(other, 10, 1)
    assert torch.equal(copies.continuation, other.continuation[rows]) and len(set(rows)) == 10
    texts = training_texts(other[:2], other[2:], 0.25, 0)
    assert len(texts.paragraphs) == 40 + round(0.25 * 38) and texts.memorized.sum() == 2
    assert set(texts.clusters[40:]) <= set(texts.clusters[2:40])
    long = mm.Paragraphs(torch.arange(120).reshape(2, 60) % 61, 50)
    assert not torch.equal(repeated_prefixes(long, 0), long.prefix)


def test_clusters_are_found_where_no_column_says_them(sets):
    memorized, other = (mm.Paragraphs(each.tokens, PREFIX) for each in sets)
    doubled = mm.Paragraphs(torch.cat([other.tokens, other.tokens.roll(1, 0)[:1].clone()]), PREFIX)
    texts = training_texts(memorized, doubled, 0.0, 0)
    assert texts.clusters[-1] == texts.clusters[40 + 39] and len(np.unique(texts.clusters)) == 80


def test_candidates_are_few_and_named(tiny_model):
    def described(features, method, **settings):
        found = candidates_of(tiny_model, features, method, mm.DetectorSettings(**settings))
        return [(each.method, each.choice.groups, each.choice.depths) for each in found]

    whole, plain = ("output", "prefix", "residual"), ("output", "prefix")
    by_depth = [("logistic", whole, (depth,)) for depth in (1, 3, 4)]
    assert described(None, "auto") == [("logistic", plain, ()), *by_depth, ("boosting", plain, ())]
    assert described(None, "boosting") == [("boosting", plain, ())]
    assert described(("residual",), "logistic", depths=(2,)) == [("logistic", ("residual",), (2,))]
    assert described("output", "auto") == [("logistic", ("output",), ()), ("boosting", ("output",), ())]
    assert (candidate_depths(1), candidate_depths(12)) == ((1,), (4, 8, 12))
    settings = mm.DetectorSettings(heads=((1, 2),), depths=(1, 2))
    found = candidates_of(tiny_model, ("heads", "lens"), "logistic", settings)
    both = union([each.choice for each in found])
    assert (both.groups, both.depths, both.heads) == (("heads", "lens"), (1, 2), ((1, 2),))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": mm.DetectorSettings(heads=((1, 2),))}, "got heads, which the features .* do not use"),
        ({"features": "output", "settings": mm.DetectorSettings(depths=(1,))}, "got depths, which the features output"),
        ({"settings": mm.DetectorSettings(depths=(9,))}, "need numbers from 0 to 4"),
        ({"settings": mm.DetectorSettings(ks=(10, 20))}, "for continuations of 10 tokens; need some below 10"),
        ({"method": "forest"}, "got method 'forest'; need one of auto, logistic, boosting"),
        ({"features": ("output", "screen")}, "screen"),
    ],
)
def test_options_that_do_not_fit_are_refused(tiny_model, sets, changes, said):
    with pytest.raises(InputError, match=said):
        mm.train_detector(tiny_model, *sets, **changes)


def test_sets_that_do_not_fit_are_sentences(tiny_model, sets):
    memorized, other = sets
    train = mm.train_detector
    with pytest.raises(InputError, match="got no other paragraph; need paragraphs that the model does not recite"):
        train(tiny_model, memorized, other[:0])
    with pytest.raises(InputError, match="got no memorized paragraph"):
        train(tiny_model, memorized[:0], other)
    with pytest.raises(InputError, match="got 1 cluster of memorized paragraphs; need at least 2"):
        train(tiny_model, memorized[:2], other)
    with pytest.raises(InputError, match="got 1 cluster of other paragraphs; need at least 2"):
        train(tiny_model, memorized, other[:2])
    with pytest.raises(InputError, match="got 2 clusters of memorized and 3 of other .*need at least 3 and 4"):
        train(tiny_model, memorized[:4], other[:6])
    with pytest.raises(InputError, match="got 1 paragraphs that are in memorized and in other"):
        train(tiny_model, memorized, together(other, memorized[:1]))
    with pytest.raises(InputError, match="of 22 tokens with a prefix of 12 and others of 20 with 12; need both alike"):
        train(tiny_model, memorized, other.replace_tokens(other.tokens[:, :20]))
    with pytest.raises(InputError, match="recites none of the 28 paragraphs given as memorized.*sets are not swapped"):
        train(tiny_model, other, memorized, settings=SMALL)


def test_a_model_with_nan_weights_is_a_sentence(tiny_model, sets):
    import copy

    broken = copy.deepcopy(tiny_model)
    broken.blocks[2].mlp.b_out.data[0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        mm.train_detector(broken, *sets, settings=SMALL)


def test_a_detector_remembers_what_it_was_trained_on(tiny_model, sets, detector):
    memorized, other = sets
    # Recited ones of the part for the threshold were not used.
    assert np.isin(prefix_hashes(other), detector.trained_on).all()
    assert np.isin(prefix_hashes(memorized), detector.trained_on).mean() > 0.6
    assert not np.isin(prefix_hashes(reciting(tiny_model, 5, seed=9)[0]), detector.trained_on).any()


KILLED = """
import os, sys
import tests.conftest as shared
import mechmem as mm
from mechmem.detect.training import decoded_parts
from tests.detect.reciting import reciting
from tests.detect.training.test_train_detector import SMALL
model = shared.hooked_neo(shared.reference_neo())
decoded_parts.PART = 16
write, left = decoded_parts.save_netcdf, [3]
def dying(*args):
    write(*args)
    left[0] -= 1
    if not left[0]:
        os._exit(9)
decoded_parts.save_netcdf = dying
mm.train_detector(model, *reciting(model, 40), settings=SMALL, work=sys.argv[1])
"""


def test_a_killed_training_goes_on_and_equals_one_that_was_not(tiny_model, sets, detector, tmp_path, monkeypatch):
    work = tmp_path / "work"
    dead = subprocess.run([sys.executable, "-c", KILLED, str(work)], check=False, capture_output=True, text=True)
    assert dead.returncode == 9, dead.stderr
    kept = sorted(path.name for path in (work / "parts").iterdir())
    assert len(kept) == 3
    monkeypatch.setattr(decoded_parts, "PART", 16)
    with pytest.raises(InputError, match=r"was begun with other settings .*seed was 0, now 1\); choose another folder"):
        mm.train_detector(tiny_model, *sets, settings=SMALL, work=work, seed=1)
    counter, decode = itertools.count(), decoded_parts.features_of_choice
    monkeypatch.setattr(decoded_parts, "features_of_choice", lambda *args: (next(counter), decode(*args))[1])
    found = mm.train_detector(tiny_model, *sets, settings=SMALL, work=work)
    assert not list(work.iterdir()), "what was kept is removed in the end"
    again = mm.train_detector(tiny_model, *sets, settings=SMALL)
    done = next(counter)
    # The first call decoded three parts less than the second.
    assert done % 2 == 1 and np.array_equal(found.null, again.null) and found.notes == again.notes
    assert found.choice == again.choice == detector.choice


def test_work_is_not_kept_among_other_files(tiny_model, sets, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files of something else \(mine.txt\)"):
        mm.train_detector(tiny_model, *sets, settings=SMALL, work=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_progress_rises_to_a_hundred(tiny_model, sets):
    seen = []
    mm.train_detector(
        tiny_model, *sets, features="output", settings=SMALL, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == sorted(seen) and seen[-1] == (100, 100)
