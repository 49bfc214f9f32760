"""Other prompts for a text that an edit took away: one token changed, shorter, longer, or a near-duplicate's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int

from mechmem.data.bounds import Count, Seed
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, between
from mechmem.measure.replacements import replacements
from mechmem.measure.scores import score
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

EM = {"units": "tokens", "higher": "more of the text is still there"}
SHARE = {"units": "1", "higher": "more of the text is still there"}
NLL = {"units": "nats per token", "higher": "less of the text is still there"}


@public("refuse", renamed={"paras": "paragraphs"})
def perturbed_prefix_attack(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    draws: Count = 32,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Change one prefix token at a time and ask for the true continuation.

    Huang et al. 2024 ("Demystifying Verbatim Memorization in Large Language Models", arXiv 2407.17817) found that text
    which an edit had taken from its own prompt comes back after slightly other prompts. Each draw replaces one token by
    a random other; every place of the prefix is drawn once before any is drawn again. Text that was never memorized
    gains from the best of many draws too: compare with the same attack on a model that does not know the text.

    Args:
        model: the edited model; left as it is.
        paragraphs: what it should not know.
        draws: changed prefixes of each paragraph.
        seed: of places and replacements.
        batch_size: changed prefixes of one forward; None: chosen for the machine.
        progress: called with (changed prefixes done, changed prefixes).

    Returns:
        Dataset: em_best, em_mean (tokens, 0 to continuation length) and match_best (share of continuation tokens that
        are the teacher-forced argmax, 0 to 1) [paragraph], over draws; em[draw, paragraph] (tokens) and
        changed_pos[draw, paragraph] (token position). Higher: more of the text is still there.

    Raises:
        InputError: no draw, or paragraphs that do not fit the model.
    """
    check_fit(model, paragraphs)
    drawn = torch.from_numpy(replacements(model, paragraphs, "random", samples=draws, seed=seed))
    places = torch.from_numpy(_places(draws, len(paragraphs), paragraphs.prefix_len, seed))[..., None]
    changed = paragraphs.tokens.repeat(draws, 1, 1).scatter(-1, places, drawn.gather(-1, places))
    asked = Paragraphs(changed.flatten(0, 1), paragraphs.prefix_len)
    found = score(model, asked, batch_size=batch_size, progress=progress)
    em = found.em.values.reshape(draws, len(paragraphs))
    match = found.match.values.mean(-1).reshape(draws, len(paragraphs))
    variables = {
        "em_best": ("paragraph", em.max(0), EM),
        "em_mean": ("paragraph", em.mean(0), EM),
        "match_best": ("paragraph", match.max(0), SHARE),
        "em": (("draw", "paragraph"), em, EM),
        "changed_pos": (("draw", "paragraph"), places[..., 0].numpy(), {"units": "token position"}),
    }
    return xr.Dataset(variables, {"paragraph": paragraphs.ids}, {"seed": seed})


def _places(draws: int, count: int, prefix_len: int, seed: int) -> Int[np.ndarray, "draw paragraph"]:
    """A prefix position for each draw: shuffles of all positions one after another, cut to the number of draws."""
    # Another stream than that of the replacements, which are drawn from the seed alone.
    rng = np.random.default_rng([seed, 1])
    rounds = -(-draws // prefix_len)
    positions = np.broadcast_to(np.arange(prefix_len), (rounds, count, prefix_len))
    return rng.permuted(positions, axis=-1).transpose(0, 2, 1).reshape(-1, count)[:draws]


@public("refuse", renamed={"paras": "paragraphs"})
def prefix_length_attack(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    lengths: Sequence[Count] | None = None,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Give fewer tokens before the continuation, or some of its own tokens as well, and ask for the rest.

    Longer prompts extract more (Carlini et al. 2023, "Quantifying Memorization Across Neural Language Models", arXiv
    2202.07646); an edit that spoiled only the first continuation tokens shows when they are given. Up to `prefix_len`
    tokens are the last ones of the prefix, and the prompt begins there; more are the whole prefix and the first tokens
    of the continuation, and what remains is asked for.

    Args:
        model: the edited model; left as it is.
        paragraphs: what it should not know.
        lengths: numbers of tokens to give, each from 1 to paragraph length - 1; None: a quarter, half and all of the
            prefix, and the prefix with a tenth, a quarter and half of the continuation, each at least one token.
        batch_size: paragraphs of one forward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs), over all lengths.

    Returns:
        Dataset [paragraph, given] with the coordinate `given` (tokens): em (tokens of what remains, up to the first
        mismatch), em_share (em / tokens that remain, 0 to 1: comparable among lengths), match (share of them that are
        the teacher-forced argmax), nll (nats per token); remaining[given] (tokens).

    Raises:
        InputError: no length, one given twice or out of range, or paragraphs that do not fit the model.
    """
    check_fit(model, paragraphs)
    chosen = _lengths(paragraphs, lengths)
    rows = []
    for number, given in enumerate(chosen):
        start = max(0, paragraphs.prefix_len - given)
        asked = Paragraphs(paragraphs.tokens[:, start:], given)
        share = len(paragraphs)
        report = between(progress, number * share, (number + 1) * share, len(chosen) * share)
        rows.append(score(model, asked, batch_size=batch_size, progress=report))
    remaining = np.array([row.sizes["pos"] for row in rows])
    em = np.stack([row.em.values for row in rows], 1)
    both = ("paragraph", "given")
    variables = {
        "em": (both, em, EM),
        "em_share": (both, em / remaining, SHARE),
        "match": (both, np.stack([row.match.values.mean(-1) for row in rows], 1), SHARE),
        "nll": (both, np.stack([row.nll.values for row in rows], 1), NLL),
        "remaining": ("given", remaining, {"units": "tokens", "long_name": "continuation tokens asked for"}),
    }
    coords = {"paragraph": paragraphs.ids, "given": ("given", chosen, {"units": "tokens"})}
    return xr.Dataset(variables, coords, {"prefix_len": paragraphs.prefix_len})


def _lengths(paragraphs: Paragraphs, lengths: Sequence[int] | None) -> list[int]:
    prefix, rest = paragraphs.prefix_len, paragraphs.continuation_len
    if lengths is None:
        shorter = [max(1, round(share * prefix)) for share in (0.25, 0.5, 1)]
        longer = [prefix + max(1, round(share * rest)) for share in (0.1, 0.25, 0.5)]
        return sorted({length for length in (*shorter, *longer) if length < prefix + rest})
    wrong = [length for length in lengths if not 1 <= length < prefix + rest]
    if wrong or not lengths or len(set(lengths)) < len(lengths):
        raise InputError(
            f"got lengths {wrong or list(lengths)} for paragraphs of {prefix + rest} tokens; need different numbers "
            f"from 1 to {prefix + rest - 1}, so that a token is given and one remains"
        )
    return list(lengths)


@public("refuse", renamed={"paras": "paragraphs"})
def near_duplicate_attack(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    near: Paragraphs,
    *,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Prompt with the prefixes of near-duplicates: same cluster, other words in some places.

    Two things are asked for after each such prefix: the near-duplicate's own continuation (is the template still
    known?) and the target's (is the text itself still there, behind a prompt that the edit did not see?).

    Args:
        model: the edited model; left as it is.
        paragraphs: what it should not know, with a column `cluster`.
        near: other paragraphs, with a column `cluster` as well. Those whose prefix is the target's own say nothing new
            about it and do not count, nor do those of other clusters.
        batch_size: paragraphs of one forward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs), over both questions.

    Returns:
        Dataset [paragraph], aggregated over the near-duplicates of each target's cluster: target_em_best,
        target_em_mean, own_em_best, own_em_mean (tokens), target_match_best, own_match_best (share, 0 to 1), NaN where
        there is none; near (how many there are); and the coordinate `cluster`. Higher: more is still there.

    Raises:
        InputError: a missing column, other lengths, no near-duplicate of any target, or paragraphs that do not fit.
    """
    check_fit(model, paragraphs)
    check_fit(model, near)
    target, other = near_pairs(paragraphs, near)
    count = len(target)
    whole = count + len(near)
    halves = between(progress, 0, count, whole), between(progress, count, whole, whole)
    crossed = torch.cat([near.prefix[other], paragraphs.continuation[target]], 1)
    asked = {
        "target": score(model, Paragraphs(crossed, paragraphs.prefix_len), batch_size=batch_size, progress=halves[0]),
        "own": score(model, near, batch_size=batch_size, progress=halves[1]).isel(paragraph=other),
    }
    variables = {}
    for name, found in asked.items():
        em, match = found.em.values.astype(np.float64), found.match.values.mean(-1)
        rows = [np.flatnonzero(target == number) for number in range(len(paragraphs))]
        for ending, of, values, attrs in (
            ("em_best", np.max, em, EM),
            ("em_mean", np.mean, em, EM),
            ("match_best", np.max, match, SHARE),
        ):
            column = [of(values[row]) if len(row) else np.nan for row in rows]
            variables[f"{name}_{ending}"] = ("paragraph", np.array(column), attrs)
    count = np.bincount(target, minlength=len(paragraphs))
    variables["near"] = ("paragraph", count, {"units": "1", "long_name": "near-duplicates that were asked"})
    coords = {"paragraph": paragraphs.ids, "cluster": ("paragraph", paragraphs.column("cluster"))}
    return xr.Dataset(variables, coords)


def near_pairs(paragraphs: Paragraphs, near: Paragraphs) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """Rows of targets and of their near-duplicates: same cluster, another prefix.

    Raises:
        InputError: a missing column `cluster`, other lengths, or no pair at all.
    """
    shapes = [(part.prefix_len, part.continuation_len) for part in (paragraphs, near)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"got near-duplicates of (prefix, continuation) {shapes[1]} tokens and targets of {shapes[0]}; need equal "
            "lengths: cut both in the same way"
        )
    same = paragraphs.column("cluster")[:, None] == near.column("cluster")
    for row in np.flatnonzero(same.any(1)):
        same[row] &= (near.prefix != paragraphs.prefix[row]).any(-1).numpy()
    target, other = np.nonzero(same)
    if len(target) == 0:
        raise InputError(
            f"none of {len(near)} near-duplicates has a target's cluster and another prefix; need at least one: take "
            "other paragraphs of the targets' clusters"
        )
    return target, other
