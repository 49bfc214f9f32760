"""How much of a paragraph survives when one token of its prefix is replaced."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.measure.decode import edit_distances
from mechmem.measure.prefix_runs import PrefixRun, prefix_runs
from mechmem.measure.replacements import Replacement, replacements
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.stats.bootstrap import cluster_bootstrap

Scope = Literal["token", "rest", "prefix"]
ATTRIBUTES: dict[str, tuple[str, str, str]] = {
    "em": ("tokens", "exact match with the replacement, mean over samples", "more survives"),
    "nll": ("nats per token", "NLL of the true continuation with the replacement, mean over samples", "less survives"),
    "em_drop": ("tokens", "EM of the unperturbed run minus EM", "the place matters more"),
    "nll_rise": ("nats per token", "NLL minus NLL of the unperturbed run", "the place matters more"),
    "match_fraction": ("1", "share of continuation tokens that are still the argmax", "more survives"),
    "edit_distance": ("tokens", "of the greedy continuation from the true one, mean over samples", "less survives"),
    "em_drop_mean": ("tokens", "mean over paragraphs", "the place matters more"),
    "em_drop_low": ("tokens", "lower end of its 95 % interval, by cluster", "the place matters more"),
    "em_drop_high": ("tokens", "upper end of its 95 % interval, by cluster", "the place matters more"),
    "clean_em": ("tokens", "EM of the unperturbed run", "more memorized"),
    "clean_nll": ("nats per token", "NLL of the unperturbed run", "less memorized"),
    "sample_em": ("tokens", "EM of each sample", "more survives"),
    "sample_nll": ("nats per token", "NLL of each sample", "less survives"),
    "replacement": ("token id", "what was put in the token's place", ""),
    "impact": ("token position", "first continuation token that is predicted otherwise than unperturbed; -1: none", ""),
    "nll_profile": (
        "nats",
        "rise of each continuation token's NLL, mean over paragraphs and samples",
        "more damage there",
    ),
    "match_profile": ("1", "share of paragraphs and samples that lose the match there, net", "more damage there"),
}


def perturb_prefix(
    model: HookedTransformer,
    paras: Paragraphs,
    *,
    replacement: Replacement = "random",
    scope: Scope = "token",
    samples: int = 1,
    edit_distance: bool = False,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Replace every prefix token in turn and score the paragraph's own continuation again (Stoehr et al. 2024, 3.1).

    EM and NLL are those of `score`, of the paragraph's true text; position 0 is perturbed like any other, and the drop
    is against the unperturbed run. Up to the first mismatch greedy decoding sees the true text, so no decoding is
    needed for EM. EM ends at the first mismatch and so exaggerates damage: read it with `match_fraction` and
    `edit_distance`. Keys and values of what stands before the replaced token are computed once. Near-ties are settled
    in float64 as in `ExactScorer`. A model with hooks, or of another architecture than GPT-Neo, GPT-2 and GPT-NeoX,
    runs whole with its hooks in place, and near-ties fall as its own precision has them.

    Args:
        model: any HookedTransformer.
        paras: paragraphs; intervals are by cluster if the table has a column `cluster`.
        replacement: "random" (any other token that is not special) or "runner-up" (the model's own next guess).
        scope: "token": the one; "rest": it and all prefix tokens after it, so that position 0 is the whole prefix;
            "prefix": the whole prefix alone, as the one position 0.
        samples: random replacements of each token.
        edit_distance: decode greedily and compare with the true continuation; takes about as long again.
        seed: of the random replacements.
        batch_size: paragraphs of one forward.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset, `pos` 0 ... prefix_len - 1: em, nll, em_drop, nll_rise, match_fraction, edit_distance (if asked for)
        [paragraph, pos], means over samples; sample_em, sample_nll, replacement, impact [sample, paragraph, pos];
        clean_em, clean_nll [paragraph]; em_drop_mean, em_drop_low, em_drop_high [pos]; nll_profile, match_profile
        [pos, continuation_pos]. Every variable's attributes give units and what higher means.

    Raises:
        InputError: an unknown replacement or scope, no sample, or paragraphs that do not fit the model.
    """
    check_fit(model, paras)
    if scope not in get_args(Scope):
        raise InputError(f"the scope is {scope!r}; need one of {', '.join(get_args(Scope))}")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; need 1 or more")
    drawn = replacements(model, paras, replacement, samples=samples, seed=seed)
    places = [0] if scope == "prefix" else list(range(paras.prefix_len))
    open_runs = prefix_runs(model, paras)
    shape = (samples, len(paras), len(places))
    names = ["em", "nll", "match_fraction", "impact"] + (["edit_distance"] if edit_distance else [])
    found = {name: np.zeros(shape) for name in names}
    clean = {name: np.zeros(len(paras)) for name in ("em", "nll")}
    profiles = np.zeros((2, len(places), paras.continuation_len))
    for start in range(0, len(paras), batch_size):
        rows = slice(start, start + batch_size)
        tokens, true = paras.tokens[rows], paras.continuation[rows]
        runs = open_runs(tokens)
        clean["em"][rows], clean["nll"][rows] = runs.clean.em, runs.clean.token_nll.mean(-1)
        to_decode: list[tuple[tuple[int, slice, int], Tensor, PrefixRun]] = []
        # From the last place to the first: what stands before a place is still clean when its turn comes.
        for column in reversed(range(len(places))):
            for sample in range(samples):
                changed = _replaced(tokens, drawn[sample, rows], places[column], paras.prefix_len, scope)
                run = runs.score(changed, places[column])
                here = (sample, rows, column)
                found["em"][here], found["nll"][here] = run.em, run.token_nll.mean(-1)
                found["match_fraction"][here] = run.match.float().mean(-1)
                found["impact"][here] = _first_difference(run, runs.clean, paras.prefix_len)
                profiles[0, column] += (run.token_nll - runs.clean.token_nll).sum(0).numpy()
                profiles[1, column] += (runs.clean.match.long() - run.match.long()).sum(0).numpy()
                if edit_distance:
                    to_decode.append((here, changed, run))
        if to_decode:
            heres, texts, scored = zip(*to_decode, strict=True)
            # All places together: a step of decoding costs about the same for one row and for many.
            said = runs.decode(
                torch.cat(texts), torch.cat([r.em for r in scored]), torch.cat([r.rival for r in scored])
            )
            for here, part in zip(heres, np.split(said, len(heres)), strict=True):
                found["edit_distance"][here] = edit_distances(part, true.numpy())
        if progress is not None:
            progress(min(start + batch_size, len(paras)), len(paras))
    result = _dataset(paras, places, drawn[:, :, places], found, clean, profiles / (samples * len(paras)))
    return result.assign_attrs(replacement=replacement, scope=scope, seed=seed, prefix_len=paras.prefix_len)


def _replaced(
    tokens: Int[Tensor, "paragraph pos"], drawn: Any, place: int, prefix_len: int, scope: Scope
) -> Int[Tensor, "paragraph pos"]:
    changed = tokens.clone()
    stop = place + 1 if scope == "token" else prefix_len
    changed[:, place:stop] = torch.from_numpy(drawn[:, place:stop])
    return changed


def _first_difference(run: PrefixRun, clean: PrefixRun, prefix_len: int) -> np.ndarray:
    different = run.predicted != clean.predicted
    first = prefix_len + different.long().argmax(-1)
    return torch.where(different.any(-1), first, -1).numpy()


def _dataset(
    paras: Paragraphs,
    places: list[int],
    drawn: np.ndarray,
    found: dict[str, np.ndarray],
    clean: dict[str, np.ndarray],
    profiles: np.ndarray,
) -> xr.Dataset:
    each, per_sample = ("paragraph", "pos"), ("sample", "paragraph", "pos")
    mean = {name: values.mean(0) for name, values in found.items() if name != "impact"}
    drop = clean["em"][:, None] - mean["em"]
    known = [] if paras.table is None else paras.table.column_names
    clusters = paras.column("cluster") if "cluster" in known else np.arange(len(paras))
    intervals = np.array([cluster_bootstrap(values, clusters) for values in drop.T])
    variables: dict[str, Any] = {name: (each, values) for name, values in mean.items()}
    variables |= {
        "em_drop": (each, drop),
        "nll_rise": (each, mean["nll"] - clean["nll"][:, None]),
        "sample_em": (per_sample, found["em"].astype(np.int64)),
        "sample_nll": (per_sample, found["nll"]),
        "impact": (per_sample, found["impact"].astype(np.int64)),
        "replacement": (per_sample, drawn),
        "clean_em": ("paragraph", clean["em"].astype(np.int64)),
        "clean_nll": ("paragraph", clean["nll"]),
        "em_drop_mean": ("pos", drop.mean(0)),
        "em_drop_low": ("pos", intervals[:, 0]),
        "em_drop_high": ("pos", intervals[:, 1]),
        "nll_profile": (("pos", "continuation_pos"), profiles[0]),
        "match_profile": (("pos", "continuation_pos"), profiles[1]),
    }
    continuation = np.arange(paras.prefix_len, paras.tokens.shape[1])
    coords = {"paragraph": np.arange(len(paras)), "pos": places, "continuation_pos": continuation}
    result = xr.Dataset(variables, coords)
    for name, variable in result.data_vars.items():
        units, long_name, higher = ATTRIBUTES[str(name)]
        variable.attrs = {"units": units, "long_name": long_name} | ({"higher": higher} if higher else {})
    return result
