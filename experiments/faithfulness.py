r"""How much of a memory the components that each localizer ranks highest keep alone: CPR and CMD for every localizer.

    python experiments/faithfulness.py     # ten minutes on one core; writes docs/faithfulness.md, results/faithfulness
    python experiments/faithfulness.py --neuron-methods alignment gate_gradient attribution integrated activations \
        gradient fisher difference zero_out slimming hard_concrete      # the slow methods, too

Mueller et al. 2025 (MIB, arXiv 2504.13151) rank components, keep the highest and ablate all others. Here: heads, MLP
neurons, or both, on memorized paragraphs of different clusters, whose scores come from the same paragraphs. Random
rankings are the control. Localizers that are finished are not run again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from faithfulness_page import curves, page_lines
from inputs import Inputs, open_inputs, start, token_counts
from outputs import agree_on_settings, read_json, save, write_json, write_page
from samples import MEMORIZED_OTHER, by_em

import mechmem as mm
from mechmem.data.bounds import Count, Seed, Share
from mechmem.localize.faithfulness import ABLATIONS, SHARES
from mechmem.model.load import HookedTransformer

# The quick ones; zero_out, slimming and hard_concrete take longer.
NEURON_METHODS = (
    "alignment", "gate_gradient", "attribution", "integrated", "activations", "gradient", "fisher", "difference"
)  # fmt: skip


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seed: draws paragraphs, replacements, random rankings and paragraphs that stand in.
        candidates: paragraphs that are scored, at random.
        paragraphs: memorized paragraphs, one of each cluster; as many others.
        before: for patching, only tokens before this one are perturbed; 50 are all of the prefix.
        permutations: of the test of attention to rare tokens.
        shares: sizes of circuits.
        neuron_methods: of `localize_neurons` that are measured.
        random: rankings at random.
        out: folder of the results and the figure.
        page: the tables, or None.
    """

    seed: Seed = 0
    candidates: Count = 1200
    paragraphs: Count = 6
    before: Count = 50
    permutations: Count = 100
    shares: tuple[Share, ...] = SHARES
    neuron_methods: tuple[str, ...] = NEURON_METHODS
    random: Count = 2
    out: Path = Path("results/faithfulness")
    page: Path | None = Path("docs/faithfulness.md")


@dataclass(frozen=True)
class Task:
    """What localizers are given: the model, memorized and other paragraphs, and how often each token occurs."""

    settings: Settings
    model: HookedTransformer
    memorized: mm.Paragraphs
    other: mm.Paragraphs
    counts: np.ndarray

    @cached_property
    def pairs(self) -> tuple[mm.Paragraphs, mm.Paragraphs]:
        """Memorized paragraphs and their worst perturbations; those that none changes are left out."""
        found = mm.perturb_prefix(self.model, self.memorized, seed=self.settings.seed)
        before = min(self.settings.before, self.memorized.prefix_len)
        return mm.worst_perturbations(self.model, self.memorized, found, before=before)


def main(settings: Settings, model: HookedTransformer | None = None) -> xr.Dataset:
    """Measure every localizer that is not measured yet, and write the page.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        What `faithfulness` gives, [localizer, ...], without its paragraphs; and cpr_paragraph [localizer, measure,
        ablation, ranking, paragraph], of each paragraph, whose mean is cpr.
    """
    model, shipped = open_inputs(settings, model)
    drawn = {"candidates": settings.candidates, "each": settings.paragraphs, "seed": settings.seed, "least": 2}
    sets = by_em(model, shipped, MEMORIZED_OTHER, **drawn)
    agree_on_settings(settings.out, settings, free=("page", "device", "out", "neuron_methods", "random"))
    task = Task(settings, model, sets["memorized"], sets["other"], token_counts(settings, model, shipped))
    found = {name: measured(task, name, scores) for name, scores in localizers(task)}
    result = xr.concat(list(found.values()), xr.Variable("localizer", list(found)), join="outer")
    save(result, curves(found), settings)
    write_page(settings.page, page_lines(found, sets["memorized"].clusters, settings, model))
    return result


def measured(task: Task, name: str, scores: Callable[[], Any]) -> xr.Dataset:
    """The curve of one localizer, from the folder where it is there."""
    file = task.settings.out / "localizers" / f"{name.replace(' ', '-').replace(',', '')}.json"
    known = read_json(file)
    if not known:
        options = {"shares": task.settings.shares, "seed": task.settings.seed, "ablations": ABLATIONS}
        found = mm.faithfulness(task.model, task.memorized, scores(), **options)
        found = found.assign(cpr_paragraph=by_paragraph(found)).drop_vars(["score", "intact", "nothing"])
        known = found.assign_coords(paragraph=np.arange(found.sizes["paragraph"])).to_dict()
        write_json(file, known)
        print(f"{name}: CPR {found.cpr.sel(measure='nll', ranking='value').values.round(3)}", flush=True)
    return xr.Dataset.from_dict(known)


def by_paragraph(found: xr.Dataset) -> xr.DataArray:
    """Each paragraph's part in CPR: its own changes, as shares of the mean change; their mean is CPR."""
    span = (found.intact - found.nothing).mean("paragraph")
    kept = (found.score - found.nothing) / span
    size = np.concatenate([[0.0], found.share.values])
    heights = kept.pad(share=(1, 0), constant_values=0.0).values
    axis = kept.dims.index("share")
    heights = np.moveaxis(heights, axis, -1)
    area = ((heights[..., 1:] + heights[..., :-1]) / 2 * np.diff(size)).sum(-1)
    return xr.DataArray(area, dims=[name for name in kept.dims if name != "share"])


def localizers(task: Task) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name -> scores [layer, head], [layer, neuron] or both; higher: the memory depends more on the component."""
    yield from head_localizers(task)
    neurons: dict[str, xr.DataArray] = {}

    def of_neurons(method: Any) -> xr.DataArray:
        if method not in neurons:
            seed = task.settings.seed
            neurons[method] = mm.localize_neurons(task.model, task.memorized, task.other, method=method, seed=seed)
        return neurons[method]

    for method in task.settings.neuron_methods:
        yield f"neurons, {method}", lambda method=method: of_neurons(method)
    for method in ("gradient", "both_ends", "integrated"):
        yield f"neurons, attribute {method}", lambda method=method: attributed(task, "mlp_post", method)
        yield (
            f"both, attribute {method}",
            lambda method=method: xr.Dataset(
                {"heads": attributed(task, "z", method), "neurons": attributed(task, "mlp_post", method)}
            ),
        )
    if "zero_out" in task.settings.neuron_methods:
        yield (
            "both, ablation zero",
            lambda: xr.Dataset({"heads": ablated(task, "zero"), "neurons": of_neurons("zero_out")}),
        )
    layers, heads, width = task.model.cfg.n_layers, task.model.cfg.n_heads, task.model.cfg.d_mlp
    shapes = {"heads": {"heads": heads}, "neurons": {"neurons": width}, "both": {"heads": heads, "neurons": width}}
    for kind, parts in shapes.items():
        for seed in range(task.settings.random):
            yield f"{kind}, random {seed}", lambda parts=parts, seed=seed: at_random(layers, parts, seed)


def head_localizers(task: Task) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Those that rank heads."""
    for direction in ("noising", "denoising", "mean"):
        yield f"heads, patch {direction}", lambda direction=direction: patched(task, direction)
    for method in ("gradient", "both_ends", "integrated"):
        yield f"heads, attribute {method}", lambda method=method: attributed(task, "z", method)
    for method in ABLATIONS:
        yield f"heads, ablate {method}", lambda method=method: ablated(task, method)
    for method in ("gradient_x_activation", "integrated"):
        yield (
            f"heads, activation {method}",
            lambda method=method: -activation_sums(task, method),
        )
    yield "heads, activation gradient", lambda: mm.activation_gradients(task.model, task.memorized, site="z").max("pos")
    yield "heads, parameter gradients", lambda: parameters(task)
    yield (
        "heads, rare tokens",
        lambda: (
            mm.rare_token_attention(
                task.model,
                task.memorized,
                task.counts,
                permutations=task.settings.permutations,
                seed=task.settings.seed,
            ).excess
        ),
    )
    yield "heads, written for rare", lambda: mm.head_circuits(task.model, task.memorized, task.counts).written_rare


def patched(task: Task, direction: Any) -> xr.DataArray:
    """Exact patching of a whole head; with the sign of noising, higher: the clean text needs the head."""
    found = mm.patch(task.model, *task.pairs, site="z", pos="all", direction=direction)
    return -found if direction == "denoising" else found


def attributed(task: Task, site: Any, method: Any) -> xr.DataArray:
    """Attribution of noising, of heads or of single neurons."""
    groups = task.model.cfg.d_mlp if site == "mlp_post" else None
    found = mm.attribute(task.model, *task.pairs, site=site, pos="all", method=method, groups=groups)
    return found.rename(group="neuron") if site == "mlp_post" else found


def ablated(task: Task, method: Any) -> xr.DataArray:
    """Rise of the NLL when one head is ablated."""
    return mm.ablate_heads(task.model, task.memorized, method=method, seed=task.settings.seed).nll_change


def activation_sums(task: Task, method: Any) -> xr.DataArray:
    """Sums over positions; below zero: the activation makes the text more likely."""
    return mm.activation_gradients(task.model, task.memorized, site="z", method=method).sum("pos")


def parameters(task: Task) -> xr.DataArray:
    """Norm of the gradient at a head's four weight matrices."""
    found = mm.parameter_gradients(task.model, task.memorized, reduction="norm")
    heads = range(task.model.cfg.n_heads)
    squares = [[found.sel(component=f"{letter}{head}") ** 2 for letter in "QKVO"] for head in heads]
    values = np.stack([np.sqrt(np.sum([part.values for part in parts], 0)) for parts in squares], 1)
    return xr.DataArray(values, dims=("layer", "head"))


def at_random(layers: int, parts: dict[str, int], seed: int) -> xr.Dataset:
    """Scores from 0 to 1 without meaning."""
    rng = np.random.default_rng(seed)
    return xr.Dataset({name: (("layer", name[:-1]), rng.random((layers, size))) for name, size in parts.items()})


if __name__ == "__main__":
    start(main, Settings, __doc__)
