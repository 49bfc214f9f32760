"""What patching and attribution return, as readings of one kind: cells, a sign, words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import xarray as xr

from mechmem.data.errors import InputError
from mechmem.show.maps.effect_signs import OWN, blue_end, meaning, metric_name
from mechmem.show.maps.heatmap import End, Kind

CELLS = ("layer", "head", "group", "pos", "into", "sender")
SCORED = {
    "continuation": ", scored on the whole continuation",
    "impact": ", scored on the first token that differs in the continuation",
}
NEEDED = "need what mechmem.patch, attribute, patch_paths, patch_experiment or perturbed_token_effects returned"


@dataclass(frozen=True, eq=False)
class Reading:
    """Numbers of one kind, for every cell.

    Attributes:
        title: above its maps.
        group: what is chosen to see it; readings of one group stand together.
        values: [paragraph, cells] or [cells].
        mean, low, high: over paragraphs, [cells], where they are known.
        kind: of the colours.
        blue: which end of a diverging scale is blue.
        whole: how cells that are shown together become one: their sum, or the largest.
    """

    title: str
    group: str
    values: xr.DataArray
    mean: xr.DataArray | None = None
    low: xr.DataArray | None = None
    high: xr.DataArray | None = None
    kind: Kind = "diverging"
    blue: End = "higher"
    whole: Literal["sum", "max"] = "sum"

    @property
    def cells(self) -> tuple[str, ...]:
        """The dimensions of its cells."""
        return tuple(str(dim) for dim in self.values.dims if dim != "paragraph")

    def of(self, paragraph: int | None) -> tuple[xr.DataArray, xr.DataArray | None, xr.DataArray | None]:
        """Value, low and high of one paragraph, by place, or of the mean; estimates are means alone."""
        if paragraph is not None and "paragraph" in self.values.dims:
            return self.values.isel(paragraph=paragraph), None, None
        if self.mean is not None:
            return self.mean, self.low, self.high
        # A cell is measured for all paragraphs or for none.
        mean = self.values.mean("paragraph", skipna=False) if "paragraph" in self.values.dims else self.values
        return mean, None, None


@dataclass(frozen=True)
class Told:
    """What is said of a result.

    Attributes:
        title: one line.
        caption: sentences.
        attrs: of the result.
        units: of its numbers, "" for none.
    """

    title: str
    caption: Sequence[str]
    attrs: Mapping[str, Any]
    units: str


def readings_of(effect: xr.DataArray | xr.Dataset) -> tuple[list[Reading], Told]:
    """The readings of a result, and what is said of it.

    Raises:
        InputError: something else than these functions return.
    """
    if isinstance(effect, xr.Dataset):
        if "effect" not in effect:
            raise InputError(f"got a Dataset of {', '.join(map(str, effect.data_vars)) or 'nothing'}; {NEEDED}")
        return _of_panels(effect) if "reading" in effect.effect.dims else _of_experiment(effect)
    if not isinstance(effect, xr.DataArray):
        raise InputError(f"got {type(effect).__name__} as effect; {NEEDED}")
    return _of_array(effect)


def with_all_dims(found: xr.Dataset) -> xr.Dataset:
    """An experiment of which one paragraph or direction was selected, as one that has no other."""
    texts = [name for name in found if str(name).startswith(("clean_", "corrupt_"))]
    if "paragraph" in found.coords and "paragraph" not in found.dims:
        # Means are about all paragraphs.
        found = found.drop_vars([name for name in found if str(name).startswith("effect_")])
        found = found.expand_dims("paragraph")
        shared = [name for name in ("estimate", "base", "source") if name in found]
        found = found.assign({name: found[name].isel(paragraph=0, drop=True) for name in shared})
    if "direction" in found.coords and "direction" not in found.dims:
        found = found.expand_dims("direction")
        found = found.assign({name: found[name].isel(direction=0, drop=True) for name in texts})
    return found


def check_cells(values: xr.DataArray) -> None:
    """Refuse other dimensions than those of cells, no cells, or what is no number.

    Raises:
        InputError: as above.
    """
    cells = [str(dim) for dim in values.dims if dim != "paragraph"]
    odd = [dim for dim in cells if dim not in CELLS]
    if odd or not cells or not values.size:
        raise InputError(
            f"got an effect with {dict(values.sizes)}; need cells of layer, head, group, pos, or into and sender, "
            "with or without paragraph: select one of the rest, such as effect.sel(step=0)"
        )
    if values.dtype.kind not in "fiub":
        raise InputError(f"got an effect of {values.dtype}; need numbers")


def _of_array(effect: xr.DataArray) -> tuple[list[Reading], Told]:
    check_cells(effect)
    attrs = {str(key): value for key, value in effect.attrs.items()}
    direction = str(attrs["direction"]) if attrs.get("direction") in ("noising", "denoising", "mean") else None
    reading = Reading(direction or "effect", "", effect, blue=blue_end(attrs, direction))
    where = f"paths into {attrs['receiver']}" if "receiver" in attrs else f"patching {attrs.get('site', '')}".strip()
    title = f"Effect of {where}"
    if "approximation" in attrs:
        title = f"Effect of {where}, estimated by attribution ({attrs['approximation']})"
    if direction is None:
        title = str(effect.name or "effect").replace("_", " ").capitalize()
    return [reading], Told(title, _caption(attrs, effect.attrs, [direction]), attrs, _units(effect))


def _of_experiment(found: xr.Dataset) -> tuple[list[Reading], Told]:
    directions = [str(name) for name in found.direction.values] if "direction" in found.effect.dims else []
    if not directions:
        raise InputError(f"got effects without a dimension direction; {NEEDED}")
    readings, shared = [], {str(key): value for key, value in found.attrs.items()}
    for direction in directions:
        here = found.sel(direction=direction)
        attrs = shared | {name: float(here[name]) for name in ("base", "source") if name in here}
        means: dict[str, Any] = {
            name: here[f"effect_{name}"] for name in ("mean", "low", "high") if f"effect_{name}" in here
        }
        check_cells(here.effect)
        blue = blue_end(attrs, direction)
        readings.append(Reading(direction, "exact patch", here.effect, blue=blue, **means))
        if "estimate" in here:
            # The estimate is in the metric's unit, also where the patch is normalized.
            blue = blue_end(attrs | {"normalized": 0}, direction)
            readings.append(Reading(f"{direction}, estimate", "estimate by attribution", here.estimate, blue=blue))
    caption = _caption(shared, found.effect.attrs, directions)
    title = f"Effect of patching {shared.get('site', '')}".strip()
    return readings, Told(title, caption, shared, _units(found.effect))


def _of_panels(found: xr.Dataset) -> tuple[list[Reading], Told]:
    readings, attrs = [], {str(key): value for key, value in found.attrs.items()}
    caption = [f"{metric_name(attrs)} of the patched run minus that of the unpatched run."]
    for reading in map(str, found.reading.values):
        denoising = reading == "perturbed_memorized"
        direction = "denoising" if denoising else "noising"
        says = "the memorized run's activation restores the memorized text" if denoising else OWN
        caption.append(f"{reading}: {found.meaning.sel(reading=reading).item()}; blue: {says}.")
        for site in map(str, found.site.values):
            here = found.sel(reading=reading, site=site)
            ends = {name: float(here[name]) for name in ("base", "source") if name in here}
            means: dict[str, Any] = {
                name: here[f"effect_{name}"] for name in ("mean", "low", "high") if f"effect_{name}" in here
            }
            check_cells(here.effect)
            readings.append(Reading(site, reading, here.effect, blue=blue_end(attrs | ends, direction), **means))
    return readings, Told("Effect of each head at the perturbed token", caption, attrs, _units(found.effect))


def _means(here: xr.Dataset) -> dict[str, Any]:
    """Mean, low and high of one reading, as far as the result holds them."""
    return {name: here[f"effect_{name}"] for name in ("mean", "low", "high") if f"effect_{name}" in here}


def _caption(attrs: Mapping[str, Any], own: Mapping[str, Any], directions: Sequence[str | None]) -> list[str]:
    if directions == [None]:
        return [f"Higher: {own['higher']}." if "higher" in own else "", meaning(attrs, None)]
    what = f"{metric_name(attrs)} of the patched run minus that of the unpatched run"
    if attrs.get("normalized"):
        what += ", as a share of what replacing everything does"
    ends = ""
    if "base" in attrs and "source" in attrs:
        ends = (
            f" Replacing nothing gives {float(attrs['base']):.3g}, replacing everything {float(attrs['source']):.3g}."
        )
    scored = SCORED.get(
        str(attrs.get("scored")), f", scored at positions {attrs.get('scored')}" if "scored" in attrs else ""
    )
    return [f"{what}{scored}.{ends}", *(meaning(attrs, direction) for direction in directions)]


def _units(effect: xr.DataArray) -> str:
    units = str(effect.attrs.get("units", ""))
    return "" if units == "1" else units
