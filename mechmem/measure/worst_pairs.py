"""Pairs of paragraphs that differ in one prefix token, for patching."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from mechmem.data.argument_checks import check_results
from mechmem.data.bounds import Count
from mechmem.data.decoding import decoded
from mechmem.data.errors import InputError
from mechmem.data.paragraph_ids import aligned
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import batches
from mechmem.measure.prefix_runs import prefix_runs
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

BATCH = 32


@public("run", renamed={"paras": "paragraphs", "drop": "perturbation"})
def worst_perturbations(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    perturbation: xr.Dataset,
    *,
    before: Count | Literal["all"] | None = None,
) -> tuple[Paragraphs, Paragraphs]:
    """Each paragraph, and the same with the one replaced token that costs the most EM (Stoehr et al. 2024, 3.1).

    Of replacements that cost the same, the one that raises NLL most is taken, then the first place. The corrupt
    paragraph's continuation is what the model greedily writes after the corrupt prefix. Paragraphs that no replacement
    makes the model continue otherwise than in their text are left out: there is nothing to patch.

    Args:
        model: the model that was perturbed.
        paragraphs: the paragraphs that were perturbed, or some of them, in any order.
        perturbation: what `perturb_prefix` gave for them with scope "token"; rows are found by the paragraphs' ids.
        before: only tokens before this position are candidates. None: the last fifth of the prefix is left out (as in
            a study). There replacements cost most for a plain reason: the first tokens of the continuation are
            predicted from the replaced token itself, and patching would find nothing but that. "all": the whole prefix.

    Returns:
        `clean` and `corrupt`, row by row of equal length, with the same ids. Exactly one prefix token differs. Both
        tables have `perturbed_pos` (where), `impact_pos` (the first continuation position where the two differ) and
        `em_change` (tokens, corrupt minus clean: 0 or less), and the paragraphs' own columns; those of `corrupt` are
        about its original, except `text`, which is its own where the model has a tokenizer.

    Raises:
        InputError: a perturbation of other paragraphs or of another scope, no candidate, or no paragraph is left.
    """
    stop = _stop(before, paragraphs.prefix_len)
    found = _checked(perturbation, paragraphs).isel(pos=slice(stop))
    ordered = ("paragraph", "pos", "sample")
    em, nll, tokens = (
        found[name].transpose(*ordered).values.reshape(len(paragraphs), -1)
        for name in ("sample_em", "sample_nll", "replacement")
    )
    # The last key counts most; a stable sort leaves the first place first.
    worst = np.lexsort((-nll, em), axis=1)[:, 0]
    rows = np.arange(len(paragraphs))
    changed = paragraphs.tokens.clone()
    changed[torch.from_numpy(rows), torch.from_numpy(worst // found.sizes["sample"])] = torch.from_numpy(
        tokens[rows, worst]
    )
    changed = _continued(model, paragraphs, changed)
    differs = (changed != paragraphs.tokens)[:, paragraphs.prefix_len :].any(1).numpy()
    if not differs.any():
        raise InputError(
            "got no replacement that changes how the model continues; need at least 1: perturb with more samples"
        )
    corrupt = _with_text(paragraphs.replace_tokens(changed), model).select(differs)
    clean = paragraphs.select(differs)
    source, impact = compare_pairs(clean, corrupt)
    change = em[rows, worst] - found.clean_em.values
    columns = {"perturbed_pos": source, "impact_pos": impact, "em_change": change[differs]}
    return clean.with_columns(**columns), corrupt.with_columns(**columns)


def _stop(before: int | Literal["all"] | None, prefix_len: int) -> int:
    """Candidates are the positions before this one."""
    if before is None:
        return max(1, prefix_len * 4 // 5)
    if before == "all":
        return prefix_len
    if isinstance(before, str) or not 1 <= before <= prefix_len:
        raise InputError(
            f"got before={before!r}; need 1 to {prefix_len} (the prefix's length), 'all', or None for all but the last "
            "fifth"
        )
    return int(before)


def _checked(perturbation: xr.Dataset, paragraphs: Paragraphs) -> xr.Dataset:
    """The perturbation of these paragraphs, in their order."""
    check_results(
        "perturbation", perturbation, ("sample_em", "sample_nll", "replacement", "clean_em"), "perturb_prefix"
    )
    if perturbation.attrs.get("scope") != "token":
        raise InputError(
            f"got a perturbation of scope {perturbation.attrs.get('scope')!r}; need 'token', as one token must differ: "
            "perturb_prefix(model, paragraphs, scope='token')"
        )
    if perturbation.sizes.get("pos") != paragraphs.prefix_len:
        raise InputError(
            f"got perturbations of {perturbation.sizes.get('pos', 0)} prefix tokens for paragraphs with a prefix of "
            f"{paragraphs.prefix_len}; need those of these paragraphs: perturb_prefix(model, paragraphs)"
        )
    return aligned(perturbation, paragraphs)


def _continued(model: HookedTransformer, paragraphs: Paragraphs, changed: Tensor) -> Int[Tensor, "paragraph pos"]:
    """Changed prefixes with what the model greedily writes after them."""
    result = changed.clone()
    open_runs = prefix_runs(model, paragraphs)
    for rows in batches(len(paragraphs), BATCH):
        runs = open_runs(changed[rows])
        said = runs.decode(changed[rows], runs.clean.em, runs.clean.rival)
        result[rows, paragraphs.prefix_len :] = torch.from_numpy(said)
    return result


def _with_text(paragraphs: Paragraphs, model: HookedTransformer) -> Paragraphs:
    if model.tokenizer is None or not paragraphs.has("text"):
        return paragraphs
    return paragraphs.with_columns(text=decoded(model.tokenizer, paragraphs.tokens))


def compare_pairs(
    clean: Paragraphs, corrupt: Paragraphs
) -> tuple[Int[np.ndarray, " paragraph"], Int[np.ndarray, " paragraph"]]:
    """Where each pair differs: the prefix position, and the first continuation position; -1 if none of these.

    Raises:
        InputError: other numbers of rows or tokens, or a pair whose prefixes do not differ in exactly one token.
    """
    if clean.tokens.shape != corrupt.tokens.shape or clean.prefix_len != corrupt.prefix_len:
        raise InputError(
            f"got clean {list(clean.tokens.shape)} with prefix {clean.prefix_len} and corrupt "
            f"{list(corrupt.tokens.shape)} with prefix {corrupt.prefix_len}; need the same shape and prefix of both"
        )
    different = (clean.tokens != corrupt.tokens).numpy()
    count = different[:, : clean.prefix_len].sum(1)
    if (count != 1).any():
        row = int(np.flatnonzero(count != 1)[0])
        raise InputError(f"got pair {row} with {count[row]} prefix tokens that differ; need exactly 1 in every pair")
    source = different[:, : clean.prefix_len].argmax(1)
    later = different[:, clean.prefix_len :]
    return source, np.where(later.any(1), clean.prefix_len + later.argmax(1), -1)
