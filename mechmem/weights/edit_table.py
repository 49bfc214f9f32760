"""An edit as a short HTML table, for notebooks: what it sets, how large it is, and its notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechmem.weights.counts_table import counts_table, size_text

if TYPE_CHECKING:
    from mechmem.weights.sparse_edit import Edit

# Characters of a note.
CHARACTERS = 200


def edit_table(edit: Edit) -> str:
    """How many weights of each layer and component it sets, bytes of places and values, and its notes; all escaped."""
    counts = {name: values.numel() for name, values in edit.values.items()}
    size = sum(tensor.nbytes for part in (edit.places, edit.values) for tensor in part.values() if tensor is not None)
    layers: dict[str, int] = {}
    for name, count in counts.items():
        if name.startswith("blocks."):
            layer = name.split(".")[1]
            layers[layer] = layers.get(layer, 0) + count
    most = max(layers, key=lambda layer: layers[layer], default=None)
    share = f"; most of them in layer {most}: {layers[most] / max(1, edit.count):.0%}" if most is not None else ""
    lines = [f"{size_text(size)} of places and values{share}"]
    lines += [f"{name}: {_short(value)}" for name, value in edit.notes.items()]
    return counts_table(repr(edit), counts, lines)


def _short(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"
