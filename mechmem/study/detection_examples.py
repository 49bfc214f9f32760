"""A few judged generations to look at: recitations that were flagged or missed, false alarms, ordinary ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Int

from mechmem.data.paragraphs import Paragraphs
from mechmem.show.token_labels import text_labels

# What is shown, in this order, and how many of each; what there is none of leaves its place to the last.
WANTED = (
    ("recitation, flagged", 2),
    ("recitation, missed", 1),
    ("no recitation, false alarm", 1),
    ("no recitation, no alarm", 2),
)
EXAMPLES = 6


def chosen_examples(found: xr.Dataset, judged: Paragraphs, tokenizer: Any, *, seed: int) -> xr.Dataset:
    """Text, score at each token and alarm of a few generations.

    Args:
        found: what `evaluate_detector` returned: label, first_flag, em [paragraph], said, score [paragraph, step].
        judged: the paragraphs that it judged.
        tokenizer: the model's; None: ids are shown.
        seed: of the draw.

    Returns:
        Dataset: example_text, example_score [example, example_pos], example_alarm (a position; -1: none), example_kind,
        example_em, example_id [example]. `example_pos` counts the tokens of prefix and own text together.
    """
    label, flag = found.label.values.astype(int), found.first_flag.values.astype(int)
    rows, kinds = example_rows(label, flag, seed=seed)
    row_of = {identity: row for row, identity in enumerate(judged.ids.tolist())}
    prefix = judged.prefix[[row_of[identity] for identity in found.paragraph.values[rows].tolist()]].numpy()
    ids = np.concatenate([prefix, found.said.values[rows].astype(int)], axis=1)
    score = np.full(ids.shape, np.nan, dtype=np.float32)
    own = judged.prefix_len + found.step.values
    score[:, own] = found.score.values[rows]
    texts = np.array([text_labels(tokenizer, row) for row in ids.tolist()], dtype=object).reshape(ids.shape)
    return xr.Dataset(
        {
            "example_text": (("example", "example_pos"), texts),
            "example_score": (
                ("example", "example_pos"),
                score,
                {"units": "1", "higher": "more certain that it recites"},
            ),
            "example_alarm": ("example", np.where(flag[rows] < 0, -1, judged.prefix_len + flag[rows])),
            "example_em": ("example", found.em.values[rows].astype(int)),
            "example_kind": ("example", np.array(kinds, dtype=object)),
            "example_id": ("example", found.paragraph.values[rows]),
        },
        attrs={"prefix_len": judged.prefix_len},
    )


def example_rows(
    label: Int[np.ndarray, " paragraph"], flag: Int[np.ndarray, " paragraph"], *, seed: int
) -> tuple[list[int], list[str]]:
    """Rows to show, in the order of `WANTED`, and what each is.

    Args:
        label: 1 where the model recites, 0 where it does not, -1 between.
        flag: own tokens at the alarm; -1: none.
        seed: of the draw.
    """
    kind = np.where(label == 1, np.where(flag >= 0, 0, 1), np.where(flag >= 0, 2, 3))
    kind[label < 0] = -1
    order = np.random.default_rng(seed).permutation(len(label))
    drawn = [order[kind[order] == number] for number in range(len(WANTED))]
    counts = [min(wanted, len(rows)) for rows, (_, wanted) in zip(drawn, WANTED, strict=True)]
    for number in (3, 0):
        counts[number] = min(len(drawn[number]), counts[number] + EXAMPLES - sum(counts))
    rows = [int(row) for each, count in zip(drawn, counts, strict=True) for row in each[:count]]
    return rows, [WANTED[kind[row]][0] for row in rows]
