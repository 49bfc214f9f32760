"""The page and the figure of `faithfulness.py`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from outputs import kept_text, stamp

import mechmem as mm
from mechmem.localize.neurons import METHODS
from mechmem.model.load import HookedTransformer

KINDS = {"heads": "Heads", "neurons": "Neurons", "both": "Heads and neurons"}
SIZES = (0.01, 0.05, 0.1, 0.2, 0.5)


def of_kind(found: Mapping[str, xr.Dataset], kind: str) -> dict[str, xr.Dataset]:
    """The localizers of one kind of component; random rankings are one row, their mean."""
    rows = {name.split(", ", 1)[1]: one for name, one in found.items() if name.startswith(f"{kind}, ")}
    random = [one for name, one in rows.items() if name.startswith("random ")]
    rows = {name: one for name, one in rows.items() if not name.startswith("random ")}
    rows = dict(sorted(rows.items(), key=lambda row: -float(cpr(row[1]))))
    if random:
        rows["random"] = xr.concat(random, "draw").mean("draw").assign_attrs(random[0].attrs)
    return rows


def cpr(one: xr.Dataset, ablation: str = "mean", ranking: str = "value") -> xr.DataArray:
    """The area under the NLL's faithfulness."""
    return one.cpr.sel(measure="nll", ablation=ablation, ranking=ranking)


def page_lines(
    found: Mapping[str, xr.Dataset], clusters: np.ndarray, settings: Any, model: HookedTransformer
) -> list[str]:
    """The page.

    Args:
        found: the curves, by kind and localizer.
        clusters: of the paragraphs.
        settings: of the script.
        model: that was measured.
    """
    some = next(iter(found.values()))
    lines = [
        "# Faithfulness of localized circuits",
        "",
        f"{stamp('faithfulness')}, seed {settings.seed}. {settings.model.capitalize()} model "
        f"({model.cfg.n_layers} layers x {model.cfg.n_heads} heads and {model.cfg.d_mlp:,} neurons), "
        f"{some.sizes['paragraph']} memorized paragraphs of different clusters.",
        "",
        "Each localizer ranks components; the highest stay and all others are ablated together, at all positions "
        "(`mm.faithfulness`). Faithfulness is the share of the NLL's change from nothing (0) to the whole model (1) "
        "that the circuit keeps. CPR is the area under it over the circuit's share of the components: higher is "
        "better. CMD is the area between it and 1: lower is better (Mueller et al. 2025). Ablated by zeros, by the "
        "mean over the paragraphs, or by another paragraph's activation. Scores and curves are of the same paragraphs. "
        "Intervals: 95 % over paragraphs, by cluster, of the change as a share of the mean change. Components that are "
        "not ranked stay.",
        "",
        f"<!-- answer -->{kept_text(settings.page, 'answer')}<!-- answer -->",
    ]
    for kind, title in KINDS.items():
        rows = of_kind(found, kind)
        if rows:
            lines += [
                "",
                f"## {title}",
                "",
                *areas(rows, clusters),
                "",
                *sizes(rows),
                "",
                *negative(rows),
                *(unmeasured(rows) if kind == "neurons" else []),
            ]
    return lines


def unmeasured(rows: Mapping[str, xr.Dataset]) -> list[str]:
    """The methods of `localize_neurons` that there is no curve of."""
    left = [name for name in METHODS if name not in rows and name != "random"]
    return ["", f"Not measured: {', '.join(left)} (`--neuron-methods`)."] if left else []


def areas(rows: Mapping[str, xr.Dataset], clusters: np.ndarray) -> list[str]:
    """CPR and CMD under every ablation."""
    lines = [
        "| localizer | CPR, mean | CPR, zero | CPR, resample | CMD, mean | zero | resample | CPR of EM, mean |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in rows.items():
        parts = one.cpr_paragraph.sel(measure="nll", ablation="mean", ranking="value").values
        low, high = mm.cluster_bootstrap(parts, clusters)
        cells = [f"{float(cpr(one)):.2f} [{low:.2f}, {high:.2f}]"]
        cells += [f"{float(cpr(one, way)):.2f}" for way in ("zero", "resample")]
        gaps = one.cmd.sel(measure="nll", ranking="value")
        cells += [f"{float(gaps.sel(ablation=way)):.2f}" for way in ("mean", "zero", "resample")]
        cells.append(f"{float(one.cpr.sel(measure='em', ablation='mean', ranking='value')):.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def sizes(rows: Mapping[str, xr.Dataset]) -> list[str]:
    """The curve itself, at some sizes, under mean ablation."""
    some = next(iter(rows.values()))
    near = [int(np.abs(some.share.values - size).argmin()) for size in SIZES]
    near = list(dict.fromkeys(near))
    heads = [f"{some.components.values[i]:,} ({some.share.values[i]:.1%})" for i in near]
    lines = [
        f"Faithfulness by number of components, mean ablation: | {' | '.join(heads)} |",
        "|---|" + "---|" * len(heads),
    ]
    lines[0] = f"| faithfulness by number of components, mean ablation | {' | '.join(heads)} |"
    for name, one in rows.items():
        curve = one.faithfulness.sel(measure="nll", ablation="mean", ranking="value").values
        lines.append(f"| {name} | {' | '.join(f'{curve[i]:.2f}' for i in near)} |")
    return lines


def negative(rows: Mapping[str, xr.Dataset]) -> list[str]:
    """Localizers with negative scores: ranked by magnitude, and everything but the negative components."""
    signed = {name: one for name, one in rows.items() if one.attrs.get("negative", 0) and name != "random"}
    if not signed:
        return []
    lines = [
        "| scores with a sign | negative components | CPR by value | CPR by magnitude | without the negative |",
        "|---|---|---|---|---|",
    ]
    for name, one in signed.items():
        total = int(one.components.values[-1])
        without = float(one.without_negative.sel(measure="nll", ablation="mean"))
        lines.append(
            f"| {name} | {one.attrs['negative']:,} of {total:,} | {float(cpr(one)):.2f} | "
            f"{float(cpr(one, ranking='magnitude')):.2f} | {without:.2f} |"
        )
    return lines


def curves(found: Mapping[str, xr.Dataset]) -> list[go.Figure]:
    """Faithfulness against size, one figure for each kind of component."""
    figures = []
    for kind, title in KINDS.items():
        rows = of_kind(found, kind)
        if not rows:
            continue
        figure = go.Figure()
        for name, one in rows.items():
            curve = one.faithfulness.sel(measure="nll", ablation="mean", ranking="value")
            figure.add_scatter(x=curve.share.values, y=curve.values, name=name, mode="lines+markers")
        figure.update_xaxes(type="log", title="share of the components that stay")
        figure.update_yaxes(title="faithfulness (NLL)", range=[-0.5, 1.3])
        figure.update_layout(title=f"{title}: what the highest keep alone, all others at their mean")
        figures.append(figure)
    return figures
