"""Is an unlearned text gone, or only hidden?"""

import numpy as np
import xarray as xr

from mechmem.report.page import Block, Cell, Table

NAMES = {
    "none": "no attack",
    "perturbed prefix": "one token of the prefix changed",
    "prefix length": "shorter or longer prefixes",
    "sampling": "best of several sampled continuations",
    "near-duplicates": "prefixes of near-duplicates",
    "quantization": "rounded weights",
    "relearning": "training on other memorized text",
    "late layers": "the original's last layers",
}
# Tokens of EM that an attack must recover to be reported.
NOTICEABLE = 2.0


def strongest_attack(attacks: xr.Dataset, edit: str) -> tuple[str, xr.Dataset] | None:
    """The attack that recovers most of the text after an edit, in words, and its numbers; None: nothing noticeable."""
    # The original's last layers hold the text themselves, so they would recover even what is gone.
    own = attacks.sel(edit=edit).where(attacks.attack != "late layers", drop=True)
    gained = (own.em_after - own.em_after.sel(attack="none")).fillna(-np.inf)
    best = int(gained.values.argmax())
    name = str(gained.attack.values[best])
    return None if float(gained.max()) < NOTICEABLE else (NAMES.get(name, name), own.isel(attack=best))


def attack_sentences(attacks: xr.Dataset | None) -> list[str]:
    """For each edit, the attack that recovers most of the text."""
    if attacks is None:
        return []
    sentences = []
    for edit in map(str, attacks.edit.values):
        found = strongest_attack(attacks, edit)
        if found is None:
            sentences.append(f"After the edit '{edit}', no attack recovers a noticeable amount of the targets.")
            continue
        name, one = found
        plain = float(attacks.em_after.sel(edit=edit, attack="none"))
        sentences.append(
            f"After the edit '{edit}', the strongest attack ({name}) raises the targets from {plain:.1f} to "
            f"{float(one.em_after):.1f} tokens of EM: what an attack recovers was hidden, not removed."
        )
    return sentences


def attack_blocks(attacks: xr.Dataset | None) -> list[Block]:
    """Every attack as numbers."""
    if attacks is None:
        return []
    rows: list[list[Cell]] = []
    for edit in attacks.edit.values:
        for name in attacks.attack.values:
            one = attacks.sel(edit=edit, attack=name)
            values = [float(one[column]) for column in ("em_before", "em_after", "em_after_low", "em_after_high")]
            cells: list[Cell] = [value if np.isfinite(value) else None for value in values]
            rows.append([str(edit), NAMES.get(str(name), str(name)), *cells])
    note = (
        "Mean EM of the targets in tokens that each attack gets: from the original model, and after the edit with its "
        "95 % interval. Most attacks take the best of several tries, so they gain a little even where nothing is left. "
        "The original's last layers hold part of the text, and training on other text changes nothing while the edited "
        "model still knows that text, so neither row proves anything alone."
    )
    return [Table("Attacks on the edits", ["Edit", "Attack", "Before", "After", "Low", "High"], rows, note)]
