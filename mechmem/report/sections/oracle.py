"""Is an edited model as if it had never read the targets?"""

import numpy as np
import xarray as xr

from mechmem.report.page import Block, Cell, Table

TARGETS = "targets"
# Variable of unlearn.nc -> title; those that the study has are shown.
COLUMNS = {
    "oracle_distance": "Distance",
    "oracle_distance_low": "Distance, low",
    "oracle_distance_high": "Distance, high",
    "oracle_kl": "KL to the oracle",
    "oracle_kl_low": "KL, low",
    "oracle_kl_high": "KL, high",
    "em": "EM",
    "p_extractable": "p-extractable",
}
# The oracle's own values, for its row of the table.
OWN = {"em": "em_of_oracle", "p_extractable": "p_extractable_of_oracle"}
NOTE = (
    "The oracle is a model of the same recipe that was trained without the targets: what a perfect edit would give. "
    "KL(edited || oracle) in nats per token over the continuations, with its 95 % interval. Distance: the same, "
    "divided by what two models differ by that were trained on the same text with other seeds; at 1 an edit is as near "
    "to the oracle as chance allows. p-extractable: probability that one sample with top-k 40 is the whole "
    "continuation. Forget quality, on the targets: p-value of a test that tells the edited model from the oracle by "
    "their truth ratios; small: it can be told."
)


def oracle_sentences(unlearned: xr.Dataset) -> list[str]:
    """How near each edit comes to the oracle on the targets; nothing where the study has none."""
    if "oracle_kl" not in unlearned or TARGETS not in unlearned.set.values:
        return []
    scaled = "oracle_distance" in unlearned
    name, unit = ("oracle_distance", "") if scaled else ("oracle_kl", " nats per token")
    at = unlearned.sel({"set": TARGETS})
    before = float(at[name][0])
    edits = [str(edit) for edit in unlearned.edit.values[1:]]
    parts = [
        f"{float(at[name].sel(edit=edit)):.2f}{_interval(at, name, edit)} after the edit '{edit}'" for edit in edits
    ]
    known = f"the oracle itself reproduces {float(at.em_of_oracle):.1f} tokens of them"
    sentences = [
        f"On the targets, the distance to a model that never read them is {before:.2f}{unit} before and "
        f"{', '.join(parts)}; {known}."
    ]
    if scaled:
        near = [f"'{edit}'" for edit in edits if float(at.oracle_distance_low.sel(edit=edit)) <= 1]
        who = f"{' and '.join(near)} {'comes' if len(near) == 1 else 'come'} as near" if near else "no edit is as near"
        sentences.append(f"Two models trained on the same text with other seeds are 1 apart: {who}.")
    return sentences


def _interval(at: xr.Dataset, name: str, edit: str) -> str:
    low, high = (float(at[f"{name}_{end}"].sel(edit=edit)) for end in ("low", "high"))
    return f" (95 % interval {low:.2f} to {high:.2f})" if np.isfinite([low, high]).all() else ""


def oracle_blocks(unlearned: xr.Dataset) -> list[Block]:
    """Every edit beside the oracle, on every set, as numbers."""
    if "oracle_kl" not in unlearned:
        return []
    shown = [name for name in COLUMNS if name in unlearned]
    rows: list[list[Cell]] = []
    for edit in unlearned.edit.values:
        for name in unlearned.set.values:
            one = unlearned.sel({"edit": edit, "set": name})
            quality = one.forget_quality if "forget_quality" in one and name == TARGETS else np.nan
            rows.append([str(edit), str(name), *_cells([one[column] for column in shown]), *_cells([quality])])
    for name in unlearned.set.values:
        own = unlearned.sel({"set": name})
        values = [own[OWN[column]] if column in OWN else np.nan for column in shown]
        rows.append(["the oracle", str(name), *_cells(values), None])
    head = ["Model", "Set", *(COLUMNS[name] for name in shown), "Forget quality"]
    return [Table("Beside a model that never read the targets", head, rows, NOTE)]


def _cells(values: list[xr.DataArray | float]) -> list[Cell]:
    numbers = [float(value) for value in values]
    return [number if np.isfinite(number) else None for number in numbers]
