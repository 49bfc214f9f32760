"""Is an unlearned text gone, or only hidden?"""

import numpy as np
import xarray as xr

from mechmem.report.page import Block, Cell, Table

WORDS = {
    "none": "no attack",
    "perturbed prefix": "one token of the prefix changed",
    "prefix length": "shorter or longer prefixes",
    "sampling": "100 sampled continuations",
    "near-duplicates": "prefixes of near-duplicates",
    "quantization": "rounded weights",
    "relearning": "training on other memorized text",
    "late layers": "the original's last layers",
}
# Tokens of EM that an attack must bring back to be worth a word.
NOTICEABLE = 2.0


def attack_sentences(attacks: xr.Dataset | None) -> list[str]:
    """For each edit, what brings most of the text back."""
    if attacks is None:
        return []
    sentences = []
    for mask in attacks["mask"].values:
        # The original's last layers hold the text themselves, so they would get back even what is gone.
        after = attacks.em_after.sel({"mask": mask, "attack": attacks.attack != "late layers"})
        plain = float(after.sel(attack="none"))
        gained = (after - plain).where(np.isfinite(after), -np.inf)
        best = str(gained.attack.values[int(np.argmax(gained.values))])
        if float(gained.max()) < NOTICEABLE:
            sentences.append(f"After the edit of {_words(mask)} no attack brings anything to speak of back.")
        else:
            sentences.append(
                f"After the edit of {_words(mask)} the targets have {plain:.1f} tokens of EM, and "
                f"{float(after.sel(attack=best)):.1f} under the strongest attack ({WORDS.get(best, best)}): what an "
                "attack brings back was hidden, not removed."
            )
    return sentences


def attack_blocks(attacks: xr.Dataset | None) -> list[Block]:
    """Every attack as numbers."""
    if attacks is None:
        return []
    rows: list[list[Cell]] = []
    for mask in attacks["mask"].values:
        for name in attacks.attack.values:
            one = attacks.sel({"mask": mask, "attack": name})
            values = [float(one[column]) for column in ("em_before", "em_after", "em_after_low", "em_after_high")]
            cells: list[Cell] = [value if np.isfinite(value) else None for value in values]
            rows.append([str(mask), WORDS.get(str(name), str(name)), *cells])
    note = (
        "Mean EM of the targets in tokens that each attack gets: from the original model, and after the edit with its "
        "95 % interval. Most attacks take the best of several tries, so they gain a little even where nothing is left. "
        "The original's last layers hold text of their own, and training on other text moves nothing while the edited "
        "model still knows that text: neither row alone proves anything."
    )
    return [Table("Attacks on the edits", ["Mask", "Attack", "Before", "After", "Low", "High"], rows, note)]


def _words(mask: object) -> str:
    return str(mask) if str(mask).startswith("all") else f"the {mask} of the weights"
