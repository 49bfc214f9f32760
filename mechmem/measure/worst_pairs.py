"""Pairs of paragraphs that differ in one prefix token, for patching."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.prefix_runs import prefix_runs
from mechmem.model.load import HookedTransformer

BATCH = 32


def worst_perturbations(
    model: HookedTransformer, paras: Paragraphs, drop: xr.Dataset, *, before: int | None = None
) -> tuple[Paragraphs, Paragraphs]:
    """Each paragraph and the same with the one replaced token that costs the most EM (Stoehr et al. 2024, 3.1).

    Of replacements that cost the same the one that raises NLL most is taken, then the first place. The corrupt
    paragraph's continuation is what the model greedily writes after the corrupt prefix. Paragraphs that no replacement
    makes the model continue otherwise than in their text are left out: there is nothing to patch.

    Args:
        model: the model that was perturbed.
        paras: the paragraphs that were perturbed.
        drop: what `perturb_prefix` gave for them with scope "token".
        before: only tokens before this position are candidates. The last few often cost most for a plain reason: the
            continuation follows them, so its first token is predicted from the replaced one itself.

    Returns:
        `clean` and `corrupt`, row by row of equal length. Exactly one prefix token differs. Both tables have
        `perturbed_pos` (where), `impact_pos` (the first continuation position where the two differ), `em_drop` and
        `row` (in `paras`); clean keeps its other columns.

    Raises:
        InputError: a Dataset of other paragraphs or of another scope, no candidate, or no paragraph is left.
    """
    if drop.attrs.get("scope") != "token":
        raise InputError(
            f"the perturbation's scope is {drop.attrs.get('scope')!r}; need 'token': one token must differ"
        )
    if drop.sizes["paragraph"] != len(paras) or drop.sizes["pos"] != paras.prefix_len:
        raise InputError(
            f"perturbations of {drop.sizes['paragraph']} paragraphs with {drop.sizes['pos']} prefix tokens came for "
            f"{len(paras)} paragraphs with {paras.prefix_len}; need those of these paragraphs"
        )
    if before is not None and not 1 <= before <= paras.prefix_len:
        raise InputError(f"before is {before}; need 1 to {paras.prefix_len}, the prefix's length")
    drop = drop.isel(pos=slice(before))
    ordered = ("paragraph", "pos", "sample")
    em, nll, tokens = (
        drop[name].transpose(*ordered).values.reshape(len(paras), -1)
        for name in ("sample_em", "sample_nll", "replacement")
    )
    # The last key counts most; a stable sort leaves the first place first.
    worst = np.lexsort((-nll, em), axis=1)[:, 0]
    place = worst // drop.sizes["sample"]
    rows = np.arange(len(paras))
    corrupt = paras.tokens.clone()
    corrupt[torch.from_numpy(rows), torch.from_numpy(place)] = torch.from_numpy(tokens[rows, worst])
    open_runs = prefix_runs(model, paras)
    for start in range(0, len(paras), BATCH):
        changed = corrupt[start : start + BATCH]
        runs = open_runs(changed)
        corrupt[start : start + BATCH, paras.prefix_len :] = torch.from_numpy(
            runs.decode(changed, runs.clean.em, runs.clean.rival)
        )
    differs = np.flatnonzero((corrupt != paras.tokens)[:, paras.prefix_len :].any(1).numpy())
    if not len(differs):
        raise InputError("no replacement changes how the model goes on; need at least one: perturb with more samples")
    clean = paras.select(differs)
    corrupt = Paragraphs(corrupt[torch.from_numpy(differs)], paras.prefix_len)
    source, impact = compare_pairs(clean, corrupt)
    lost = drop.clean_em.values[differs] - em[differs, worst[differs]]
    columns = {"perturbed_pos": source, "impact_pos": impact, "em_drop": lost, "row": differs}
    return clean.with_columns(**columns), corrupt.with_columns(**columns)


def compare_pairs(
    clean: Paragraphs, corrupt: Paragraphs
) -> tuple[Int[np.ndarray, " paragraph"], Int[np.ndarray, " paragraph"]]:
    """Where each pair differs: the prefix position, and the first continuation position; -1 if none of these.

    Raises:
        InputError: other numbers of rows or tokens, or a pair whose prefixes do not differ in exactly one token.
    """
    if clean.tokens.shape != corrupt.tokens.shape or clean.prefix_len != corrupt.prefix_len:
        raise InputError(
            f"clean is {list(clean.tokens.shape)} with prefix {clean.prefix_len} and corrupt "
            f"{list(corrupt.tokens.shape)} with prefix {corrupt.prefix_len}; need the same of both"
        )
    different = (clean.tokens != corrupt.tokens).numpy()
    count = different[:, : clean.prefix_len].sum(1)
    if (count != 1).any():
        row = int(np.flatnonzero(count != 1)[0])
        raise InputError(f"pair {row} differs in {count[row]} prefix tokens; need exactly one in every pair")
    source = different[:, : clean.prefix_len].argmax(1)
    later = different[:, clean.prefix_len :]
    return source, np.where(later.any(1), clean.prefix_len + later.argmax(1), -1)
