"""Everything that is known about one attention head and rare tokens, with a verdict that says what was not shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import xarray as xr

from mechmem.data.bounds import Count, Index, Seed
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback
from mechmem.data.token_counts import as_counts
from mechmem.localize.ablation_runs import AblationMethod, check_ablation
from mechmem.localize.activation_gradients import activation_gradients
from mechmem.localize.circuits import head_circuits
from mechmem.localize.gradients import parameter_gradients
from mechmem.localize.head_tests import TESTS, ablated, head_tests
from mechmem.localize.head_verdict import Findings, verdict
from mechmem.localize.head_views import head_views, viewed_sets
from mechmem.localize.heads import RAREST, rare_token_attention
from mechmem.localize.rarity import rarest_weight
from mechmem.model.head_names import heads_of
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.sites import ATTENTION
from mechmem.model.vocabulary import vocabulary
from mechmem.stats.bootstrap import cluster_bootstrap

LEVEL = 0.05
SETS = ("memorized", "other")
# Measures of attention to rare tokens, and whether a high value means more of it.
ATTENDS = {"excess": True, "spearman": False, "kendall": False, "pearson": False}
KEPT = ("p_value", "tenth_mass", "tenth_expected")
STEPS = 6


@public("refuse")
def head_report(
    model: HookedTransformer,
    memorized: Paragraphs,
    other: Paragraphs,
    *,
    layer: Index | None = None,
    head: Index | str | tuple[int, int] = "all",
    counts: Any,
    method: AblationMethod = "mean",
    perturbed: Paragraphs | None = None,
    examples: Count = 2,
    seed: Seed = 0,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Whether a head attends to rare tokens, and whether it matters (Stoehr et al. 2024, section 5, about L1H2).

    1. Attention of all heads to each set's rare tokens, as `rare_token_attention`: excess over position-matched
       controls, rank correlations with corpus counts, and p-values corrected over all heads. One paragraph of each
       cluster: near-duplicates hide the excess.
    2. Gradients of the memorized set's NLL in every head: its W_Q, W_K, W_V and W_O (`parameter_gradients`) and its
       values (`activation_gradients`).
    3. What the head's QK circuit favours and its OV circuit writes, as `head_circuits`.
    4. Causal tests on the memorized paragraphs: the head's output, attention or values replaced; its attention to the
       rarest 10 % of the prefix's tokens taken away, and to as many of the most frequent ones. Intervals are 95 %, by
       cluster.

    Args:
        model: left as it is.
        memorized: at least two paragraphs.
        other: at least two paragraphs that are not memorized.
        layer: the head's layer, with `head` as a number.
        head: a number (with `layer`), a name ("L1H2"), a (layer, head) pair, or "all": of the heads that attend to rare
            tokens with p < 0.05, the one whose removal raises the NLL most; without any, the one with the lowest p.
        counts: how often each token id occurs in the corpus, [d_vocab]: any array-like.
        method: what replaces the head's output, attention or values, as `ablate_heads`.
        perturbed: the corrupt side of `worst_perturbations` of some memorized paragraphs, for views beside these.
        examples: paragraphs of each set whose attention patterns are kept; with `perturbed`, memorized paragraphs that
            it has, and the same perturbed.
        seed: of permutations and "resample".
        progress: called with (steps done, steps).

    Returns:
        Dataset. [set, layer, head]: excess, spearman, kendall, pearson, p_value. [set, tenth, layer, head]:
        tenth_mass, tenth_expected. [layer, head]: value_gradient, and the
        variables of `head_circuits`. [matrix, layer, head]: weight_gradient. [test, paragraph]: em_change (tokens) and
        nll_change (nats per token), after minus before, with nll_mean, nll_low and nll_high [test]; rare_minus_frequent
        [end] (mean, low, high of the difference between the two last tests). [view, query_pos, key_pos]: pattern of the
        head, with `view_set` (memorized, perturbed, other), `paragraph_id`, `token` and `text` of each example. attrs:
        head ("L1H2"), verdict (sentences), ranks (of all heads, 1 is most), screened (for "all": the heads that attend,
        with the change of NLL without each), and whether it `attends`, `matters` (the interval lies above 0.01 nats per
        token) and matters `at_rare_tokens`.

    Raises:
        InputError: a head that the model does not have, fewer than two paragraphs in a set, perturbed ones of other
            paragraphs, counts that do not fit, or a model that cannot be used.
    """
    counts = as_counts(counts, model.cfg.d_vocab, vocabulary(model))
    named = _named(model, layer, head)
    for name, paragraphs in zip(SETS, (memorized, other), strict=True):
        if len(paragraphs) < 2:
            raise InputError(f"got {len(paragraphs)} {name} paragraph; need at least 2")
        check_ablation(model, paragraphs, method)
    shown = viewed_sets(memorized, other, perturbed, examples)
    report, done = as_callback(progress, "head_report"), iter(range(1, STEPS + 1))

    def step() -> None:
        if report is not None:
            report(next(done), STEPS)

    rare = []
    for paragraphs in (memorized, other):
        rare.append(rare_token_attention(model, one_of_each_cluster(paragraphs), counts, seed=seed)[[*ATTENDS, *KEPT]])
        step()
    screen = cast(xr.Dataset, xr.concat(rare, xr.DataArray(list(SETS), dims="set", name="set")))
    chosen, screened = (named, {}) if named else _strongest(model, memorized, screen, method, seed)
    screen = screen.assign({**_gradients(model, memorized), **head_circuits(model, memorized, counts).data_vars})
    step()
    changes = head_tests(model, memorized, chosen, counts, fraction=RAREST, method=method, seed=seed)
    step()
    tests, intervals = _tests(changes, memorized)
    views = head_views(model, shown, chosen)
    step()
    found = _findings(screen, tests, chosen, intervals, memorized, counts)
    result = xr.merge([screen, tests, views], combine_attrs="drop")
    attrs = {
        "head": found.head,
        "verdict": verdict(found),
        "attends": int(found.attends),
        "matters": int(found.matters),
    }
    attrs |= {"at_rare_tokens": int(found.at_rare), "ranks": [f"{k}: {v}" for k, v in found.ranks.items()]}
    attrs |= {"heads": model.cfg.n_layers * model.cfg.n_heads, "method": method, "seed": seed, "level": LEVEL}
    step()
    return result.assign_attrs(attrs, screened=[f"{name}: {change:.4g}" for name, change in screened.items()])


def one_of_each_cluster(paragraphs: Paragraphs) -> Paragraphs:
    """The first paragraph of each cluster, if at least two are left; all of them where clusters are not known."""
    if not paragraphs.has("cluster"):
        return paragraphs
    first = np.sort(np.unique(paragraphs.column("cluster"), return_index=True)[1])
    return paragraphs.select(first) if len(first) > 1 else paragraphs


def _named(model: HookedTransformer, layer: int | None, head: Any) -> tuple[int, int] | None:
    """The head that was asked for; None for all."""
    if isinstance(head, str) and head == "all":
        if layer is not None:
            raise InputError("got a layer and head='all'; need a head of this layer, or no layer")
        return None
    if isinstance(head, int):
        if layer is None:
            raise InputError(f"got head {head} without a layer; need both, or a name such as 'L1H{head}'")
        return heads_of(model, [(layer, head)])[0]
    if layer is not None:
        raise InputError(f"got layer {layer} and head {head!r}; need the head as a number, or its name alone")
    return heads_of(model, [head])[0]


def _strongest(
    model: HookedTransformer, memorized: Paragraphs, screen: xr.Dataset, method: AblationMethod, seed: int
) -> tuple[tuple[int, int], dict[str, float]]:
    """Of the heads that attend to rare tokens, the one whose removal raises the NLL most; and what each one's does."""
    p = screen.p_value.sel(set="memorized").transpose("layer", "head").values
    excess = screen.excess.sel(set="memorized").transpose("layer", "head").values
    found = [(int(layer), int(head)) for layer, head in np.argwhere((p < LEVEL) & (excess > 0))]
    if not found:
        layer, head = np.unravel_index(np.lexsort((-excess.ravel(), p.ravel()))[0], p.shape)
        return (int(layer), int(head)), {}
    change = ablated(model, memorized, found, "z", method, seed)[1].mean(-1)
    names = {f"L{layer}H{head}": float(value) for (layer, head), value in zip(found, change, strict=True)}
    return found[int(change.argmax())], names


def _gradients(model: HookedTransformer, memorized: Paragraphs) -> dict[str, xr.DataArray]:
    by_component = parameter_gradients(model, memorized)
    heads = np.arange(model.cfg.n_heads)
    parts = [
        by_component.sel(component=[f"{letter}{head}" for head in heads])
        .rename(component="head")
        .assign_coords(head=heads)
        for letter in ATTENTION
    ]
    weights = xr.concat(parts, xr.DataArray([f"W_{letter}" for letter in ATTENTION], dims="matrix", name="matrix"))
    values = activation_gradients(model, memorized, site="v").max("pos", keep_attrs=True)
    return {"weight_gradient": weights, "value_gradient": values}


def _tests(changes: np.ndarray, memorized: Paragraphs) -> tuple[xr.Dataset, dict[str, tuple[float, float, float]]]:
    """The tests as a Dataset, and mean, low and high of the output's and of the rare keys' extra effect on NLL."""
    nll, clusters = changes[1], memorized.clusters
    ends = np.array([cluster_bootstrap(row, clusters) for row in nll])
    extra = nll[TESTS.index("rare keys")] - nll[TESTS.index("frequent keys")]
    difference = (float(extra.mean()), *cluster_bootstrap(extra, clusters))
    output = TESTS.index("output")
    intervals = {"output": (float(nll[output].mean()), *map(float, ends[output])), "rare": difference}
    units = {"units": "nats per token", "higher": "the text is less likely without it: it is needed"}
    data = {
        "em_change": (("test", "paragraph"), changes[0], {"units": "tokens", "higher": "EM is higher without it"}),
        "nll_change": (("test", "paragraph"), nll, units),
        "nll_mean": ("test", nll.mean(-1), units),
        "nll_low": ("test", ends[:, 0], units),
        "nll_high": ("test", ends[:, 1], units),
        "rare_minus_frequent": ("end", np.array(difference), units),
    }
    coords = {"test": list(TESTS), "paragraph": memorized.ids, "end": ["mean", "low", "high"]}
    return xr.Dataset(data, coords), intervals


def _findings(
    screen: xr.Dataset,
    tests: xr.Dataset,
    head: tuple[int, int],
    intervals: Mapping[str, tuple[float, float, float]],
    memorized: Paragraphs,
    counts: np.ndarray,
) -> Findings:
    own = screen.sel(layer=head[0], head=head[1])
    ranks = {name: _rank(screen[name].sel(set="memorized"), head, high) for name, high in ATTENDS.items()}
    for letter in ATTENTION:
        ranks[f"gradient of W_{letter}"] = _rank(screen.weight_gradient.sel(matrix=f"W_{letter}"), head, True)
    ranks["gradient of its values"] = _rank(screen.value_gradient, head, True)
    keys = rarest_weight(counts[memorized.prefix.cpu().numpy()], RAREST)[0].sum()
    return Findings(
        head=f"L{head[0]}H{head[1]}",
        heads=int(screen.sizes["layer"] * screen.sizes["head"]),
        excess={name: float(own.excess.sel(set=name)) for name in SETS},
        p={name: float(own.p_value.sel(set=name)) for name in SETS},
        ranks=ranks,
        output=intervals["output"],
        rare=intervals["rare"],
        em=float(tests.em_change.sel(test="output").mean()),
        keys=round(float(keys)),
        level=LEVEL,
    )


def _rank(values: xr.DataArray, head: tuple[int, int], high: bool) -> int:
    """1 for the head with the most; heads without a value come last."""
    grid = values.transpose("layer", "head").values
    grid = np.where(np.isnan(grid), -np.inf, grid if high else -grid)
    return 1 + int((grid > grid[head]).sum())
