"""The sets: sizes and NLL of each group of EM, and what the scored columns, decoding and own text change."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import batches
from mechmem.measure.decode import greedy_continuations
from mechmem.measure.exact import ExactScorer
from mechmem.measure.scores import score
from mechmem.measure.tolerance import calibration_sample
from mechmem.model.forward import continuation_logits, token_nll
from mechmem.model.load import HookedTransformer
from mechmem.stats.ranges import NOT_NEGATIVE
from mechmem.study.paper import published
from mechmem.study.paper.intervals import mean_row
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.paper_sets import GROUPS
from mechmem.study.paper.readings import own_text
from mechmem.study.paper.rows import Finding, Reading, Row, Trap

ITEM, NLL = "sets", "nats per token"
# Paragraphs of each group whose scores by column are compared, and of all groups that are decoded step by step.
SAMPLE, DECODED = 256, 16
BATCH = 16


def sets_item(paper: PaperFolder) -> Finding:
    """Count and score the groups; traps 3, 4, 5 and 13."""
    counted = {name: len(paper.sets.group(name)) for name in GROUPS}
    stated = published.COUNTS
    rows = [
        Row(ITEM, f"paragraphs, EM {name}", "as published", float(count), None, None, stated[name], "paragraphs")
        for name, count in counted.items()
    ]
    clusters = float(len(np.unique(paper.sets.memorized.clusters)))
    rows.append(Row(ITEM, "clusters of near-duplicates, EM 50", "corrected", clusters, None, None, None, "clusters"))
    nll = np.full((2, len(GROUPS)), np.nan)
    for number, name in enumerate(GROUPS):
        if counted[name]:
            found = _nll_rows(paper, name)
            rows += found
            nll[:, number] = [row.measured for row in found]
    data = xr.Dataset(
        {
            "count": ("group", np.array(list(counted.values())), {"units": "paragraphs"}),
            "nll": (("reading", "group"), nll, {"units": NLL, "higher": "less likely"}),
        },
        {"group": list(GROUPS), "reading": ["as published", "corrected"]},
    )
    data.attrs["finding"] = (
        f"{counted['50']:,} paragraphs of EM 50 are {clusters:,.0f} clusters of near-duplicates; their mean NLL is "
        f"{nll[1, -1]:.3f} nats per token."
    )
    return Finding(tuple(rows), data, (*_column_trap(nll), *_text_traps(paper), _decoding_trap(paper)))


def _nll_rows(paper: PaperFolder, name: str) -> list[Row]:
    group = paper.sets.group(name)
    some = group.select(np.sort(np.random.default_rng(paper.seed).permutation(len(group))[:SAMPLE]))
    known = some.column("published_nll") if some.has("published_nll") else np.full(1, np.nan)
    stated = float(known.mean()) if paper.sets.check.applies and np.isfinite(known).all() else None
    note = "the continuations are the model's own text" if some.column("own_text").any() else ""
    by_token = score(paper.model, some).token_nll.values.astype(float)
    # The first column scores the first token of the continuation: `published_columns` leaves it out.
    readings: dict[Reading, np.ndarray] = {"as published": by_token[:, 1:].mean(1), "corrected": by_token.mean(1)}
    quantity = f"mean NLL, EM {name}"
    return [
        mean_row(
            paper, ITEM, quantity, reading, values, some, published=stated, units=NLL, within=NOT_NEGATIVE, note=note
        )
        for reading, values in readings.items()
    ]


def _column_trap(nll: np.ndarray) -> tuple[Trap, ...]:
    slipped, corrected = (float(value) for value in nll[:, -1])
    change = (
        f"Without the first token the mean NLL of memorized paragraphs is {slipped:.4f} instead of {corrected:.4f} "
        f"nats per token: {100 * (slipped / corrected - 1):+.1f} %."
    )
    return (Trap(3, "The scored columns skip the first continuation token", slipped, corrected, NLL, change),)


def _text_traps(paper: PaperFolder) -> list[Trap]:
    """NLL of true tokens behind self-generated ones, and NLL of self-generated ones, beside the true NLL."""
    found = [paper.sets.group(name) for name in GROUPS[:-1]]
    found = [group.select(np.flatnonzero(~group.column("own_text"))) for group in found]
    group = next((group for group in found if len(group)), None)
    if group is None:
        return []
    some = group.select(np.arange(min(DECODED, len(group))))
    own = own_text(paper.model, some)
    true, written = float(score(paper.model, some).nll.mean()), float(score(paper.model, own).nll.mean())
    mixed = float(_nll_in_context(paper.model, own, some).mean())
    name = str(some.column("group")[0])
    return [
        Trap(
            4,
            "NLL after decoding is that of true tokens in a self-generated context",
            mixed,
            true,
            NLL,
            f"On {len(some)} paragraphs of EM {name}, true tokens behind the model's own text have {mixed:.2f} nats "
            f"per token; in their true context they have {true:.2f}.",
        ),
        Trap(
            5,
            "The text of other paragraphs is the model's own",
            written,
            true,
            NLL,
            f"On the same paragraphs the model's own continuation has {written:.2f} nats per token and the true one "
            f"{true:.2f}: gradients and NLL of such sets describe generated text.",
        ),
    ]


def _nll_in_context(model: HookedTransformer, context: Paragraphs, true: Paragraphs) -> np.ndarray:
    """NLL of each row of `true`, token by token behind the tokens of `context`."""
    parts = []
    with torch.no_grad():
        for rows in batches(len(true), BATCH):
            logits = continuation_logits(model, context.tokens[rows], true.prefix_len)
            parts.append(token_nll(logits, true.continuation[rows].to(logits.device)).mean(-1).cpu())
    return torch.cat(parts).numpy()


def _decoding_trap(paper: PaperFolder) -> Trap:
    """EM by decoding every token, against EM from one forward."""
    rows = [paper.sets.group(name) for name in GROUPS]
    each = [group.select(np.arange(min(DECODED // 4, len(group)))) for group in rows if len(group)]
    tokens, length = torch.cat([group.tokens for group in each]), paper.sets.scored.continuation_len
    sample = Paragraphs(tokens, paper.sets.scored.prefix_len)
    em = score(paper.model, sample)
    scorer = ExactScorer(paper.model, calibration_sample(sample))
    # Known to have no match, so that every token is decoded after the first, which the model gives itself.
    nothing, first = np.zeros(len(sample), dtype=np.int64), em.greedy.values[:, 0]
    said = greedy_continuations(scorer.lean, tokens, sample.prefix_len, nothing, first)
    decoded = np.cumprod(said == sample.continuation.numpy(), axis=1).sum(1)
    same = int((decoded == em.em.values).sum())
    change = (
        f"EM from one forward equals EM from {length} decoding steps in {same} of {len(sample)} paragraphs; where "
        "logits nearly tie, float64 decides, whatever the batch."
    )
    return Trap(
        13, "EM needs one forward pass, not 50 decoding steps", float(length), 1.0, "forwards per paragraph", change
    )
