"""EM under more and more noise."""

from __future__ import annotations

import xarray as xr

from mechmem.report.paper.drawing import Drawing
from mechmem.show.theme import edit_colour, empty_figure

LINES = {
    "top": "selected weights",
    "top, random": "as many random weights",
    "head": "{}",
    "head, random": "as many, {}",
}
DASHES = {"top": "solid", "top, random": "dot", "head": "solid", "head, random": "dot"}


def draw_noise(data: xr.Dataset) -> list[Drawing]:
    """Mean EM of memorized paragraphs by scale, one figure for each reading."""
    drawings = []
    for reading in data.reading.values:
        figure = empty_figure(f"EM of memorized paragraphs under noise ({reading})", 360)
        for number, (name, label) in enumerate(LINES.items()):
            found = data.em.sel({"reading": reading, "mask": name, "set": "memorized"})
            figure.add_scatter(
                x=data.scale.values,
                y=found.mean("draw").transpose("scale").values,
                mode="lines+markers",
                name=label.format(_place(data, str(reading), name)),
                line={"color": edit_colour(1 + number // 2), "dash": DASHES[name]},
                hovertemplate="%{x:g} standard deviations: %{y:.1f} tokens<extra>%{fullData.name}</extra>",
            )
        figure.update_xaxes(type="log", title="noise, standard deviations of the weight's component (log scale)")
        figure.update_yaxes(title="mean EM, tokens (higher = more is left)", rangemode="tozero")
        said = "Noise on selected weights matters where it costs more than on as many random weights of each tensor."
        drawings.append(Drawing(f"noise-{str(reading).replace(' ', '-')}", figure, said))
    return drawings


def _place(data: xr.Dataset, reading: str, name: str) -> str:
    """Where the head's noise really is."""
    place = data.attrs["noisy_heads"][0 if reading == "as published" else 1]
    return f"random in the layer of {place}" if name.endswith("random") else place
