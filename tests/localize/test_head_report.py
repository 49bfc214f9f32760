"""The head that was planted is named and shown to matter; its silent double and shuffled labels are not."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.localize.head_report import ATTENDS, head_report, one_of_each_cluster
from mechmem.localize.head_tests import TESTS, head_tests
from mechmem.localize.head_verdict import Findings, verdict
from mechmem.localize.head_views import head_views, viewed_sets
from mechmem.model.hooks import hooked_points
from mechmem.report.head_page import head_page
from mechmem.report.page import page_html


@pytest.fixture(scope="module")
def truth():
    return mm.planted(mm.PlantedSettings(seed=1))


@pytest.fixture(scope="module")
def screened(truth):
    return head_report(truth.model, truth.memorized, truth.other, counts=truth.unigram_counts)


def test_screening_all_heads_names_the_planted_one(truth, screened):
    assert screened.attrs["head"] == "L1H2" == "L{}H{}".format(*truth.head)
    assert (screened.attrs["attends"], screened.attrs["matters"], screened.attrs["at_rare_tokens"]) == (1, 1, 1)
    assert screened.attrs["verdict"].endswith(
        "L1H2 attends to rare tokens, and what it reads from them is needed to recite."
    )
    names = [entry.split(":")[0] for entry in screened.attrs["screened"]]
    assert names == ["L1H2", "L{}H{}".format(*truth.silent)], "both attend; only one is taken"


def test_the_silent_double_attends_and_does_not_matter(truth):
    found = head_report(truth.model, truth.memorized, truth.other, head=truth.silent, counts=truth.unigram_counts)
    assert (found.attrs["attends"], found.attrs["matters"], found.attrs["at_rare_tokens"]) == (1, 0, 0)
    assert found.attrs["verdict"].endswith("It attends to rare tokens; not shown to matter.")
    assert not found.nll_change.any()


def test_loud_heads_neither_attend_nor_matter(truth):
    found = head_report(truth.model, truth.memorized, truth.other, head=truth.loud[0], counts=truth.unigram_counts)
    assert (found.attrs["attends"], found.attrs["matters"]) == (0, 0)
    assert found.attrs["verdict"].endswith("Nothing was shown for this head.")


@pytest.mark.parametrize("seed", range(6))
def test_shuffled_labels_find_nothing(truth, seed):
    null = truth.null(seed)
    found = head_report(null.model, null.memorized, null.other, counts=null.unigram_counts)
    assert not (found.attrs["attends"] and found.attrs["matters"])


def test_of_shuffled_labels_at_most_one_in_twenty_attends(truth):
    """The corrected p-value of the best of all heads is below 0.05 in at most 5 % of shuffles."""
    below = 0
    for seed in range(60):
        null = truth.null(seed)
        found = mm.rare_token_attention(null.model, null.memorized, null.unigram_counts, permutations=200)
        below += bool(found.p_value.min() < 0.05)
    # With a chance of 5 %, more than 8 of 60 come once in 500.
    assert below <= 8


def test_numbers_are_those_of_the_functions_it_gathers(truth, screened):
    model, memorized, counts = truth.model, truth.memorized, truth.unigram_counts
    rare = mm.rare_token_attention(model, memorized, counts)
    for name in (*ATTENDS, "p_value"):
        np.testing.assert_allclose(screened[name].sel(set="memorized"), rare[name])
    circuits = mm.head_circuits(model, memorized, counts)
    for name in circuits.data_vars:
        np.testing.assert_allclose(screened[name], circuits[name])
    gradients = mm.parameter_gradients(model, memorized)
    np.testing.assert_allclose(
        screened.weight_gradient.sel(matrix="W_K", layer=1, head=2), gradients.sel(layer=1, component="K2")
    )
    effect = mm.ablate_heads(model, memorized, heads=["L1H2"])
    for name in ("em_change", "nll_change"):
        np.testing.assert_allclose(
            screened[name].sel(test="output").mean(), effect[name].sel(layer=1, head=2), atol=1e-6
        )
    ranks = dict(entry.split(": ") for entry in screened.attrs["ranks"])
    assert ranks["excess"] == "1" and ranks["gradient of W_V"] == "1"
    assert screened.paragraph.values.tolist() == memorized.ids.tolist()


def test_keys_are_taken_away_as_a_loop_would(truth):
    """One paragraph at a time, each rare key set to zero by hand."""
    model, paragraphs = truth.model, truth.memorized[:3]
    counts = truth.unigram_counts.numpy().astype(float)
    found = head_tests(model, paragraphs, truth.head, counts, fraction=0.1, method="mean", seed=0)
    for number, paragraph in enumerate(paragraphs):
        frequency = counts[paragraph.prefix.numpy()[0]]
        assert len(set(np.sort(frequency)[4:6])) == 2, "no tie at the border"
        rarest = np.argsort(frequency)[:5]

        def take(pattern, hook, rarest=rarest):  # noqa: ARG001
            pattern[:, truth.head[1], :, rarest] = 0.0
            return pattern

        with torch.no_grad(), model.hooks(fwd_hooks=[(f"blocks.{truth.head[0]}.attn.hook_pattern", take)]):
            hooked = mm.score(model, paragraph)
        plain = mm.score(model, paragraph)
        test = TESTS.index("rare keys")
        np.testing.assert_allclose(found[1, test, number], float(hooked.nll[0] - plain.nll[0]), atol=1e-4)
        assert found[0, test, number] == float(hooked.em[0] - plain.em[0]) == -50
    assert hooked_points(model) == []


def test_a_head_can_be_named_in_three_ways(truth, screened):
    options = {"counts": truth.unigram_counts}
    for where in ({"head": "L1H2"}, {"layer": 1, "head": 2}, {"head": (1, 2)}):
        found = head_report(truth.model, truth.memorized, truth.other, **where, **options)
        assert found.attrs["verdict"] == screened.attrs["verdict"] and found.attrs["screened"] == []


def test_patterns_of_examples_are_the_heads_own(truth, screened):
    _, cache = truth.model.run_with_cache(truth.other.tokens[:2], names_filter="blocks.1.attn.hook_pattern")
    expected = cache["blocks.1.attn.hook_pattern"][:, 2].detach()
    chosen = screened.isel(view=np.flatnonzero(screened.view_set.values == "other"))
    np.testing.assert_allclose(chosen.pattern, expected, atol=1e-5)
    np.testing.assert_array_equal(chosen.token, truth.other.tokens[:2])
    assert chosen.paragraph_id.values.tolist() == truth.other.ids[:2].tolist()


def test_perturbed_paragraphs_are_shown_beside_their_originals(truth):
    changed = truth.memorized.tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 500
    # Some of them, in another order.
    perturbed = truth.memorized.replace_tokens(changed).select([5, 2, 4])
    sets = viewed_sets(truth.memorized, truth.other, perturbed, 2)
    assert {name: len(paragraphs) for name, paragraphs in sets.items()} == {"memorized": 2, "perturbed": 2, "other": 2}
    assert sets["perturbed"].ids.tolist() == sets["memorized"].ids.tolist() == truth.memorized.ids[[2, 4]].tolist()
    views = head_views(truth.model, sets, (1, 2))
    assert views.view_set.values.tolist() == ["memorized"] * 2 + ["perturbed"] * 2 + ["other"] * 2
    np.testing.assert_array_equal(views.token[2:4], changed[[2, 4]])
    _, cache = truth.model.run_with_cache(changed[[2, 4]], names_filter="blocks.1.attn.hook_pattern")
    np.testing.assert_allclose(views.pattern[2:4], cache["blocks.1.attn.hook_pattern"][:, 2].detach(), atol=1e-5)
    with pytest.raises(InputError, match="with none of the memorized paragraphs' ids"):
        viewed_sets(truth.memorized, truth.other, truth.other, 2)
    with pytest.raises(InputError, match="got perturbed paragraphs of 99 tokens and memorized ones of 100"):
        viewed_sets(truth.memorized, truth.other, truth.memorized.replace_tokens(changed[:, :-1]), 2)


def test_the_page_shows_the_verdict_and_each_view(screened):
    html = page_html(head_page(screened))
    conclusion = screened.attrs["verdict"].rsplit(". ", 1)[1]
    assert conclusion in html and "Head L1H2" in html
    data = re.findall(r'<script type="application/json" id="mechmem-[^>]*-data">(.*?)</script>', html, re.S)
    shown = [paragraph["sides"] for paragraph in json.loads(data[0])["paragraphs"]]
    assert len(data) == 1 and len(shown) == screened.sizes["view"] == 4 and all(len(sides) == 1 for sides in shown)


def test_one_of_each_cluster():
    paragraphs = mm.Paragraphs(torch.arange(60).view(6, 10), 5)
    assert len(one_of_each_cluster(paragraphs)) == 6
    assert one_of_each_cluster(paragraphs.with_columns(cluster=[3, 1, 3, 1, 7, 3])).tokens[:, 0].tolist() == [0, 10, 40]
    assert len(one_of_each_cluster(paragraphs.with_columns(cluster=[1] * 6))) == 6


@pytest.mark.parametrize(
    ("changed", "ending"),
    [
        ({}, "what it reads from them is needed to recite."),
        ({"rare": (0.1, -0.1, 0.3)}, "that it matters by what it reads from them was not shown."),
        ({"output": (0.5, -0.1, 1.0)}, "It attends to rare tokens; not shown to matter."),
        ({"output": (0.005, 0.004, 0.006)}, "It attends to rare tokens; not shown to matter."),
        (
            {"output": (0.005, 0.004, 0.006), "excess": {"memorized": -0.2, "other": 0.2}},
            "It was not shown to attend to rare tokens, and little depends on it.",
        ),
        ({"p": {"memorized": 0.2, "other": 0.2}}, "It matters, but not shown to attend to rare tokens."),
        ({"excess": {"memorized": -0.2, "other": 0.2}}, "It matters, but not shown to attend to rare tokens."),
    ],
)
def test_the_verdict_names_what_was_not_shown(changed, ending):
    found = verdict(Findings(**(findings() | changed)))
    assert found.endswith(ending) and found.startswith("L3H1 ")


def test_the_verdict_does_not_deny_a_small_change_whose_interval_lies_above_zero():
    small: dict[str, Any] = {"output": (0.005, 0.002, 0.02), "rare": (0.004, 0.001, 0.006)}
    none: dict[str, Any] = {"output": (0.005, -0.001, 0.02), "rare": (0.005, -0.001, 0.02)}
    found = verdict(Findings(**(findings() | small)))
    assert found.count("though not shown to be by at least 0.01 nats per token (+0.00") == 2
    assert "not measurably" not in found and "not shown to cost" not in found
    found = verdict(Findings(**(findings() | none)))
    assert "though" not in found and "not measurably" in found and "not shown to cost anything" in found


def findings() -> dict:
    return {
        "head": "L3H1",
        "heads": 144,
        "excess": {"memorized": 0.3, "other": 0.2},
        "p": {"memorized": 0.01, "other": 0.2},
        "ranks": {"excess": 2, "spearman": 5},
        "output": (0.5, 0.2, 0.7),
        "rare": (0.4, 0.2, 0.6),
        "em": -12.0,
        "keys": 5,
        "level": 0.05,
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "L9H9"}, "need .layer, head. pairs or names"),
        ({"head": 2}, "got head 2 without a layer; need both, or a name such as 'L1H2'"),
        ({"layer": 1}, "got a layer and head='all'"),
        ({"layer": 1, "head": "L1H2"}, "got layer 1 and head 'L1H2'"),
        ({"head": "L1H2", "counts": [1.0, 2.0]}, "counts"),
        ({"head": "L1H2", "method": "shuffle"}, "method"),
    ],
)
def test_what_cannot_be_reported_is_refused(truth, options, said):
    with pytest.raises((InputError, Exception), match=said) as caught:
        head_report(truth.model, truth.memorized, truth.other, **({"counts": truth.unigram_counts} | options))
    assert isinstance(caught.value, InputError) or "TypeCheck" in type(caught.value).__name__
    with pytest.raises(InputError, match="got 1 other paragraph; need at least 2"):
        head_report(truth.model, truth.memorized, truth.other[:1], head="L1H2", counts=truth.unigram_counts)
