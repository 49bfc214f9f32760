"""How much of a paragraph survives when one token of its prefix is replaced."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.bounds import Count, Seed
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.measure.decode import edit_distances
from mechmem.measure.prefix_runs import PrefixRun, PrefixRuns, prefix_runs
from mechmem.measure.replacements import Replacement, replacements
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.stats.cell_intervals import cell_intervals
from mechmem.stats.ranges import range_of

Scope = Literal["token", "rest", "prefix"]
# Paragraphs of one forward.
BATCH = 16
# Index into [sample, paragraph, pos], the changed tokens, and what the model makes of them.
Decoding = tuple[tuple[int, slice, int], Tensor, PrefixRun]
ATTRIBUTES: dict[str, tuple[str, str, str]] = {
    "em": ("tokens", "exact match with the replacement, mean over samples", "more survives"),
    "nll": ("nats per token", "NLL of the true continuation with the replacement, mean over samples", "less survives"),
    "em_change": ("tokens", "EM minus EM of the unperturbed run", "more survives; below 0: the replacement costs EM"),
    "nll_change": (
        "nats per token",
        "NLL minus NLL of the unperturbed run",
        "less survives; above 0: the replacement costs likelihood",
    ),
    "match_fraction": ("1", "share of continuation tokens that are still the argmax", "more survives"),
    "edit_distance": ("tokens", "of the greedy continuation from the true one, mean over samples", "less survives"),
    "em_change_mean": ("tokens", "em_change, mean over paragraphs", "the place matters less"),
    "em_change_low": ("tokens", "lower end of its 95 % interval, by cluster", "the place matters less"),
    "em_change_high": ("tokens", "upper end of its 95 % interval, by cluster", "the place matters less"),
    "clean_em": ("tokens", "EM of the unperturbed run", "more memorized"),
    "clean_nll": ("nats per token", "NLL of the unperturbed run", "less memorized"),
    "sample_em": ("tokens", "EM of each sample", "more survives"),
    "sample_nll": ("nats per token", "NLL of each sample", "less survives"),
    "replacement": ("token id", "what was put in the token's place", ""),
    "impact": ("token position", "first continuation token that is predicted otherwise than unperturbed; -1: none", ""),
    "nll_profile": (
        "nats",
        "change of each continuation token's NLL, mean over paragraphs and samples",
        "more damage there",
    ),
    "match_profile": ("1", "change of the share of paragraphs and samples that match there", "less damage there"),
}


@public("run", renamed={"paras": "paragraphs"})
def perturb_prefix(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    replacement: Replacement = "random",
    scope: Scope = "token",
    samples: Count = 1,
    edit_distance: bool = False,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Replace every prefix token in turn and score the paragraph's own continuation again (Stoehr et al. 2024, 3.1).

    EM and NLL are those of `score`, of the paragraph's true text; position 0 is perturbed like any other, and changes
    are perturbed minus unperturbed. Up to the first mismatch greedy decoding sees the true text, so no decoding is
    needed for EM. EM ends at the first mismatch and so exaggerates damage: read it with `match_fraction` and
    `edit_distance`. Keys and values of the tokens before the replaced one are computed once. Near-ties are settled
    in float64 as in `ExactScorer`. A model with hooks, or of another architecture than GPT-Neo, GPT-2 and GPT-NeoX,
    runs whole with its hooks in place, and near-ties fall as its own precision has them.

    Args:
        model: any HookedTransformer.
        paragraphs: paragraphs; intervals are by cluster if the table has a column `cluster`.
        replacement: "random" (any other token that is not special) or "runner-up" (the model's own next guess).
        scope: "token": the one; "rest": it and all prefix tokens after it, so that position 0 is the whole prefix;
            "prefix": the whole prefix alone, as the one position 0.
        samples: random replacements of each token.
        edit_distance: decode greedily and compare with the true continuation; takes about as long again.
        seed: of the random replacements.
        batch_size: paragraphs of one forward; None: 16.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset with coordinates `paragraph` (the paragraphs' ids) and `pos` 0 ... prefix_len - 1: em, nll, em_change,
        nll_change, match_fraction, edit_distance (if asked for) [paragraph, pos], means over samples; sample_em,
        sample_nll, replacement, impact [sample, paragraph, pos]; clean_em, clean_nll [paragraph]; em_change_mean,
        em_change_low, em_change_high [pos]; nll_profile, match_profile [pos, continuation_pos]. Every
        variable's attributes give units and what higher means.

    Raises:
        InputError: an unknown replacement or scope, no sample, or paragraphs that do not fit the model.
    """
    runs = PerturbedRuns(
        model,
        paragraphs,
        replacement=replacement,
        scope=scope,
        samples=samples,
        edit_distance=edit_distance,
        seed=seed,
        batch_size=batch_size,
    )
    result = runs.measure(slice(0, len(paragraphs)), progress)
    return result.assign(mean_changes(result.em_change.values, paragraphs))


class PerturbedRuns:
    """Runs with one token of the prefix replaced, of any rows of some paragraphs.

    What is drawn and calibrated is that of all paragraphs, so rows measured in parts give what they give together.

    Args:
        model: as `perturb_prefix`.
        paragraphs: all of them.
        **options: as `perturb_prefix`; all are needed.

    Raises:
        InputError: as `perturb_prefix`.
    """

    def __init__(self, model: HookedTransformer, paragraphs: Paragraphs, **options: Any) -> None:
        check_fit(model, paragraphs)
        self._scope: Scope = options["scope"]
        check_choice("scope", self._scope, Scope)
        self._size = BATCH if options["batch_size"] is None else options["batch_size"]
        if self._size < 1:
            raise InputError(f"got batch_size {self._size}; need 1 or more, or None for {BATCH}")
        self._paragraphs, self._samples, self._decodes = paragraphs, options["samples"], options["edit_distance"]
        how = {name: options[name] for name in ("samples", "seed")}
        self._drawn = replacements(model, paragraphs, options["replacement"], **how)
        self._places = [0] if self._scope == "prefix" else list(range(paragraphs.prefix_len))
        self._open = prefix_runs(model, paragraphs)
        self._attrs = {"replacement": options["replacement"], "scope": self._scope, "seed": options["seed"]}

    def measure(self, rows: slice, progress: ProgressLike = None) -> xr.Dataset:
        """What `perturb_prefix` gives of some rows, without `mean_changes`; the profiles are means over these rows.

        Args:
            rows: which paragraphs, from the first to before the last, as numbers.
            progress: called with (paragraphs done, paragraphs of these).
        """
        chosen, drawn = self._paragraphs[rows], self._drawn[:, rows]
        shape = (self._samples, len(chosen), len(self._places))
        names = ["em", "nll", "match_fraction", "impact"] + (["edit_distance"] if self._decodes else [])
        found = {name: np.zeros(shape) for name in names}
        clean = {name: np.zeros(len(chosen)) for name in ("em", "nll")}
        profiles = np.zeros((2, len(self._places), chosen.continuation_len))
        for batch in batches(len(chosen), self._size, progress):
            self._measure_batch(chosen, drawn, batch, found, clean, profiles)
        profiles /= self._samples * len(chosen)
        result = _dataset(chosen, self._places, drawn[:, :, self._places], found, clean, profiles)
        return result.assign_attrs(**self._attrs, prefix_len=chosen.prefix_len)

    def _measure_batch(
        self,
        paragraphs: Paragraphs,
        drawn: Int[np.ndarray, "sample paragraph pos"],
        rows: slice,
        found: dict[str, np.ndarray],
        clean: dict[str, np.ndarray],
        profiles: np.ndarray,
    ) -> None:
        tokens, true = paragraphs.tokens[rows], paragraphs.continuation[rows]
        runs = self._open(tokens)
        clean["em"][rows], clean["nll"][rows] = runs.clean.em, runs.clean.token_nll.mean(-1)
        to_decode: list[Decoding] = []
        # From the last place to the first: the tokens before a place are still clean when its turn comes.
        for column in reversed(range(len(self._places))):
            for sample in range(self._samples):
                place = self._places[column]
                changed = _replaced(tokens, drawn[sample, rows], place, paragraphs.prefix_len, self._scope)
                run = runs.score(changed, place)
                here = (sample, rows, column)
                found["em"][here], found["nll"][here] = run.em, run.token_nll.mean(-1)
                found["match_fraction"][here] = run.match.float().mean(-1)
                found["impact"][here] = _first_difference(run, runs.clean, paragraphs.prefix_len)
                profiles[0, column] += (run.token_nll - runs.clean.token_nll).sum(0).numpy()
                profiles[1, column] += (run.match.long() - runs.clean.match.long()).sum(0).numpy()
                if self._decodes:
                    to_decode.append((here, changed, run))
        if to_decode:
            _decode(runs, to_decode, true.numpy(), found["edit_distance"])


def mean_changes(em_change: Float[np.ndarray, "paragraph pos"], paragraphs: Paragraphs) -> dict[str, xr.Variable]:
    """The mean EM change of every position, with its interval by cluster: what is known of all paragraphs alone."""
    within = range_of("em_change", paragraphs.continuation_len)
    low, high = cell_intervals(em_change, paragraphs.clusters, within=within)
    values = {
        "em_change_mean": em_change.mean(0),
        "em_change_low": low,
        "em_change_high": high,
    }
    return {name: xr.Variable("pos", found, _attributes(name)) for name, found in values.items()}


def _decode(
    runs: PrefixRuns,
    waiting: list[Decoding],
    true: Int[np.ndarray, "paragraph continuation_pos"],
    distances: Float[np.ndarray, "sample every_paragraph pos"],
) -> None:
    """Fill in the edit distances of some runs' greedy continuations."""
    places, texts, scored = zip(*waiting, strict=True)
    # All places together: a step of decoding costs about the same for one row and for many.
    said = runs.decode(
        torch.cat(texts), torch.cat([run.em for run in scored]), torch.cat([run.rival for run in scored])
    )
    for place, part in zip(places, np.split(said, len(places)), strict=True):
        distances[place] = edit_distances(part, true)


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
    paragraphs: Paragraphs,
    places: list[int],
    drawn: np.ndarray,
    found: dict[str, np.ndarray],
    clean: dict[str, np.ndarray],
    profiles: np.ndarray,
) -> xr.Dataset:
    each, per_sample = ("paragraph", "pos"), ("sample", "paragraph", "pos")
    mean = {name: values.mean(0) for name, values in found.items() if name != "impact"}
    change = mean["em"] - clean["em"][:, None]
    variables: dict[str, Any] = {name: (each, values) for name, values in mean.items()}
    variables |= {
        "em_change": (each, change),
        "nll_change": (each, mean["nll"] - clean["nll"][:, None]),
        "sample_em": (per_sample, found["em"].astype(np.int64)),
        "sample_nll": (per_sample, found["nll"]),
        "impact": (per_sample, found["impact"].astype(np.int64)),
        "replacement": (per_sample, drawn),
        "clean_em": ("paragraph", clean["em"].astype(np.int64)),
        "clean_nll": ("paragraph", clean["nll"]),
        "nll_profile": (("pos", "continuation_pos"), profiles[0]),
        "match_profile": (("pos", "continuation_pos"), profiles[1]),
    }
    continuation = np.arange(paragraphs.prefix_len, paragraphs.tokens.shape[1])
    coords = {"paragraph": paragraphs.ids, "pos": places, "continuation_pos": continuation}
    result = xr.Dataset(variables, coords)
    for name, variable in result.data_vars.items():
        variable.attrs = _attributes(str(name))
    return result


def _attributes(name: str) -> dict[str, str]:
    units, long_name, higher = ATTRIBUTES[name]
    return {"units": units, "long_name": long_name} | ({"higher": higher} if higher else {})
