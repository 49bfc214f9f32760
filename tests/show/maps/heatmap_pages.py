"""What a page of heatmaps and its SVG hold, read back as numbers."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np

from mechmem.show.packed_numbers import unpacked_numbers

SVG = "{http://www.w3.org/2000/svg}"


def page_data(picture):
    found = re.search(r'type="application/json"[^>]*>(.*?)</script>', picture.html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def options(picture, name):
    """The options of a chooser."""
    return next(chooser["options"] for chooser in page_data(picture)["choosers"] if chooser["name"] == name)


def shown_maps(picture, **chosen):
    """The maps of some choices, by the words of their options; the first option where nothing is said."""
    data, at = page_data(picture), 0
    for chooser in data["choosers"]:
        wanted = chosen.pop(chooser["name"], chooser["options"][0])
        at = at * len(chooser["options"]) + chooser["options"].index(wanted)
    assert not chosen
    return data["panels"][at]


def numbers_of(picture, panel, packed="packed"):
    """[row, column] of a map."""
    axes = page_data(picture)["axes"]
    shape = len(axes[panel["rows"]]["labels"]), len(axes[panel["columns"]]["labels"])
    return unpacked_numbers(panel[packed] if isinstance(packed, str) else packed[0]).reshape(shape)


def axis_of(picture, panel, which):
    return page_data(picture)["axes"][panel[which]]


def told_in_svg(path):
    """Every cell's tooltip, in order."""
    root = ElementTree.parse(path).getroot()
    return [title.text or "" for title in root.iter(f"{SVG}title")]


def number_told(text):
    """The number in a tooltip: "L1H2: −0.0123 nats per token" is -0.0123."""
    found = re.search(r": ([−+]?[\d.,]+(?:e-?\d+)?|not measured)", text)
    assert found is not None, text
    said = found[1].replace("−", "-").replace(",", "")
    return np.nan if said == "not measured" else float(said)
