"""Where the ladder's memories sit: every head and layer, by six methods, at each snapshot of each rung.

    python experiments/ladder_where.py                     # all rungs that are there; what was measured stays
    python experiments/ladder_where.py --rung smallest

The documents are the same for all models: those inserted often, spread over the training. Each is paired with the same
continuation after the prefix of a document of its kind that was never inserted. By method, [layer, head] and for each
document: exact patching of z and attribution with the gradients at both ends (mean of both directions), ablation by
the mean, and the largest gradient of the NLL with respect to a head's values (Stoehr et al. 2024, figure 6). By layer:
shares of the parameter gradients, and of the 1 % of neurons that the documents depend on most. By head: attention to
rare tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xarray as xr
from inputs import start
from ladder_corpus import BASE, with_prefix
from ladder_measure import documents_of, steps_of, trained_rungs
from ladder_rungs import snapshot_folder

import mechmem as mm
from mechmem.data.bounds import Count, Seed, Share, check_fields
from mechmem.data.counts import unigram_counts
from mechmem.data.folder_lock import only_writer
from mechmem.data.netcdf import load_netcdf, save_netcdf
from mechmem.data.settings_match import refuse_other_settings
from mechmem.model.load import HookedTransformer
from mechmem.stats.ranges import SHARE


@dataclass(frozen=True)
class Settings:
    """What is localized.

    Attributes:
        rung: "smallest", a name as 3M-large-seed1, or "all" that were trained.
        least_copies: of the documents; of those with fewer the smaller models know little.
        prefix_len: tokens of the prefix.
        gradient_site: activations whose gradients are taken; the study's are a head's values.
        top_share: of the neurons, whose layers are counted.
        every: only every so many snapshots are localized, counted from the last; the others can follow later.
        permutations: of the test of attention to rare tokens.
        seed: of the permutations.
        work: folder of the rungs.
    """

    rung: str = "all"
    least_copies: Count = 64
    prefix_len: Count = 50
    gradient_site: Literal["q", "k", "v", "z"] = "v"
    top_share: Share = 0.01
    every: Count = 1
    permutations: Count = 200
    seed: Seed = 0
    work: Path = Path("runs/ladder")

    def __post_init__(self) -> None:
        check_fields(self)


def often_and_never(
    documents: mm.Paragraphs, least_copies: int, prefix_len: int, condition: str = "spread"
) -> tuple[mm.Paragraphs, mm.Paragraphs]:
    """Documents inserted often, and their continuations after the prefix of one of their kind never inserted.

    Args:
        documents: of `ladder_measure.documents_of`.
        least_copies: of each.
        prefix_len: tokens of the prefix.
        condition: under which they were inserted.
    """
    paragraphs = with_prefix(documents, prefix_len)
    copies, kinds = paragraphs.column("copies"), paragraphs.column("source")
    base = paragraphs.column("text_of") == BASE
    often = np.flatnonzero((copies >= least_copies) & (paragraphs.column("condition") == condition) & base)
    never = {kind: np.flatnonzero((copies == 0) & base & (kinds == kind)) for kind in np.unique(kinds)}
    # Each never-inserted document once, as far as they go.
    turn = dict.fromkeys(never, 0)
    partners = []
    for row in often:
        own = never[kinds[row]]
        partners.append(int(own[turn[kinds[row]] % len(own)]))
        turn[kinds[row]] += 1
    tokens = torch.cat([paragraphs.tokens[partners][:, :prefix_len], paragraphs.continuation[often]], 1)
    chosen = paragraphs.select(often)
    return chosen, replace(chosen, tokens=tokens)


def head_effects(
    model: HookedTransformer, clean: mm.Paragraphs, corrupt: mm.Paragraphs, gradient_site: str = "v"
) -> xr.Dataset:
    """patching, attribution, ablation and activation_gradients, [paragraph, layer, head].

    The first three are in nats per token; higher: the memory needs the head. The gradients are the largest sizes over
    d_head and positions, in nats per token per unit of activation; higher: the NLL depends more on the head.
    """
    options = {"site": "z", "pos": "all", "direction": "mean", "scored": "continuation", "average": False}
    ablated = mm.ablate_heads(model, clean, method="mean", average=False).nll_change
    gradients = mm.activation_gradients(model, clean, site=gradient_site, average=False).max("pos", keep_attrs=True)
    return xr.Dataset(
        {
            "patching": mm.patch(model, clean, corrupt, **options),
            "attribution": mm.attribute(model, clean, corrupt, method="both_ends", **options),
            "ablation": ablated,
            "activation_gradients": gradients,
        }
    ).transpose("paragraph", "layer", "head")


def layer_shares(model: HookedTransformer, clean: mm.Paragraphs, others: mm.Paragraphs, share: float) -> xr.Dataset:
    """parameter_gradients and neurons, [layer]: shares of a whole, which add up to 1."""
    squares = mm.parameter_gradients(model, clean, reduction="norm").astype(np.float64) ** 2
    scores = mm.localize_neurons(model, clean, others, method="gate_gradient").transpose("layer", "neuron").values
    top = np.argsort(-scores, axis=None)[: max(1, int(share * scores.size))] // scores.shape[1]
    of_gradients = squares.sum("component") / squares.sum()
    counts = np.bincount(top, minlength=len(scores)) / len(top)
    return xr.Dataset({"parameter_gradients": of_gradients, "neurons": ("layer", counts)})


def locate(model: HookedTransformer, documents: mm.Paragraphs, counts: np.ndarray, settings: Settings) -> xr.Dataset:
    """All methods on one model, as the script's first lines say; rare_excess and rare_p_value [layer, head] too."""
    clean, corrupt = often_and_never(documents, settings.least_copies, settings.prefix_len)
    paragraphs = with_prefix(documents, settings.prefix_len)
    base = paragraphs.select(paragraphs.column("text_of") == BASE)
    rare = mm.rare_token_attention(model, base, counts, permutations=settings.permutations, seed=settings.seed)
    never = base.select(base.column("copies") == 0)
    found = head_effects(model, clean, corrupt, settings.gradient_site).merge(
        layer_shares(model, clean, never, settings.top_share)
    )
    found = found.assign(rare_excess=rare.excess, rare_p_value=rare.p_value)
    for name, paragraphs in (("clean_nll", clean), ("corrupt_nll", corrupt)):
        found[name] = mm.score(model, paragraphs).nll
    return found.assign_coords(copies=("paragraph", np.asarray(clean.column("copies"))))


def locate_rung(settings: Settings, folder: Path) -> None:
    """Locate at each snapshot of a rung that has no result yet."""
    documents = documents_of(folder)
    stream = np.load(folder / "stream.npy", mmap_mode="r")
    decided = {name: value for name, value in asdict(settings).items() if name not in ("rung", "every", "work")}
    with only_writer(folder):
        # The finished model first: most of the page is about it.
        for step in steps_of(folder)[:: -settings.every]:
            path = folder / "where" / f"step{step:06d}.nc"
            if path.exists():
                was = json.loads(load_netcdf(path).attrs["settings"])
                refuse_other_settings(path, was, decided, advice="remove it, or ask for these settings")
                continue
            model = mm.load_model(snapshot_folder(folder, step), device="cpu")
            result = locate(model, documents, unigram_counts(stream, model.cfg.d_vocab), settings)
            result.attrs["settings"] = json.dumps(decided)
            path.parent.mkdir(exist_ok=True)
            save_netcdf(result, path)
            layers = ", ".join(f"{value:.2f}" for value in layer_profile(result.patching).mean("paragraph").values)
            print(f"{folder.name} step {step}: effect of patching by layer {layers} nats per token", flush=True)


def located(folder: Path) -> list[tuple[int, xr.Dataset]]:
    """Step and result of each snapshot that was localized, ascending."""
    paths = [(step, folder / "where" / f"step{step:06d}.nc") for step in steps_of(folder)]
    return [(step, load_netcdf(path)) for step, path in paths if path.exists()]


def layer_profile(effects: xr.DataArray) -> xr.DataArray:
    """The effects of a layer's heads together, those below zero left out, [paragraph, layer]."""
    return effects.clip(0).sum("head")


def centre_of_mass(profile: np.ndarray) -> np.ndarray:
    """Mean relative depth, 0 at the first layer and 1 at the last, of a profile [..., layer]."""
    depth = np.linspace(0, 1, profile.shape[-1])
    return (profile * depth).sum(-1) / profile.sum(-1)


def centre_interval(profile: np.ndarray, clusters: Sequence[int] | np.ndarray) -> tuple[float, float, float]:
    """The centre of mass of the mean profile, and its interval by cluster, from profiles [paragraph, layer].

    The centre is a ratio of means: its terms, centre + (numerator - centre * denominator) / mean denominator, have it
    as their mean and vary by cluster as it does.
    """
    depth = np.linspace(0, 1, profile.shape[1])
    numerator, denominator = profile @ depth, profile.sum(1)
    centre = numerator.mean() / denominator.mean()
    terms = centre + (numerator - centre * denominator) / denominator.mean()
    low, high = mm.cluster_bootstrap(terms, np.asarray(clusters), within=SHARE)
    return float(centre), low, high


def main(settings: Settings) -> None:
    """Locate in every rung that was trained.

    Args:
        settings: which.
    """
    for folder in trained_rungs(settings.work, settings.rung):
        locate_rung(settings, folder)


if __name__ == "__main__":
    start(main, Settings, __doc__)
