"""The page of the scoreboard."""

from dataclasses import asdict
from typing import Any

import xarray as xr
from outputs import kept_text, stamp, write_page
from scoreboard_answer import answer
from scoreboard_tables import deletion_table, goal, head_table, injection_table, truth_table

from mechmem.localize.scoreboard import PROTOCOLS


def write(settings: Any, injected: xr.Dataset, heads: xr.Dataset, deleted: xr.Dataset, truth: xr.Dataset) -> None:
    """Write the page of docs.

    Args:
        settings: of the run.
        injected: the boards of INJ, [protocol, ...].
        heads: the board of paragraphs injected into heads.
        deleted: the board of DEL.
        truth: the board of hand-set models.
    """
    names = ("seed", "targets", "others", "keep", "planted")
    fixed = {name: value for name, value in asdict(settings).items() if name in names}
    lines = [
        "# Localizer scoreboard",
        "",
        f"{stamp('scoreboard')}, {fixed}. Values are means with 95 % intervals over targets, each of another cluster "
        "and with a draw of its own. Times are medians of the processor's time, each as a multiple of another method's "
        "on the same target.",
        kept_text(settings.page, "what it says").join(["<!-- what it says -->"] * 2),
        "",
        *answer(injected, heads, deleted),
        *injection(injected),
        *of_heads(heads),
        *known(injected, heads, truth),
        *deletion(deleted),
    ]
    write_page(settings.page, lines)


def injection(injected: xr.Dataset) -> list[str]:
    """INJ by both protocols."""
    whole, theirs = (injected.sel(protocol=protocol) for protocol in PROTOCOLS)
    return [
        "## INJ: inject a paragraph into a random 1 % of the neurons",
        "",
        "Two protocols. **Whole neurons**: the weights into and out of the drawn neurons are trained, and the neurons "
        "that score highest in the whole model are compared with those drawn. **Out-weights**, Chang et al.'s (2024) "
        "protocol: what the drawn neurons write is trained alone, and the top neurons of every layer are compared. "
        f"EM after injection: {float(whole.em.mean()):.1f} and {float(theirs.em.mean()):.1f} tokens. A random order "
        "has an area under the precision-recall curve of 1 % and an AUROC of 0.5.",
        "",
        "### Whole neurons, top of the model",
        "",
        *injection_table(whole, published=False),
        "",
        *goal(whole),
        "![Recall by method](scoreboard-recall.png)",
        "",
        "### Out-weights, top of every layer (as published)",
        "",
        "The last column has the recall published for GPT-2 124M at 1, 2 and 5 % (Chang et al. 2024): another model, "
        "other text.",
        "",
        *injection_table(theirs, published=True),
        "",
        *goal(theirs),
    ]


def of_heads(heads: xr.Dataset) -> list[str]:
    """A paragraph in a few heads."""
    count = int(heads.attrs["heads"])
    return [
        f"## Heads: inject a paragraph into {count} random heads",
        "",
        "The same training as for whole neurons, with W_Q, W_K, W_V and W_O of the drawn heads alone. Heads are ranked "
        "by the signed effect on the paragraph, over all positions. Patching and attribution compare the paragraph "
        "with its perturbation of one prefix token that costs most; finding that is not in their time. "
        f"EM after injection: {float(heads.head_em.mean()):.1f} tokens.",
        "",
        *head_table(heads),
        "",
    ]


def known(injected: xr.Dataset, heads: xr.Dataset, truth: xr.Dataset) -> list[str]:
    """AUROC of everything."""
    return [
        "## AUROC where the answer is known",
        "",
        "The chance that what is true scores above what is not; 0.5 by chance. Hand-set models: the head that all "
        "memories go through among all heads; the neurons that write a memory, among all neurons, and each at its one "
        "position among all neurons and positions; the weights of both among all attention and MLP weights. Injected: "
        "the neurons or heads that a paragraph was trained into, and their trained weights among all. Integrated "
        "activation gradients rank the hand-set head last: their eight steps pass over the threshold of the neurons "
        "behind it; 32 steps give the effect of ablating it (tests/experiments).",
        "",
        *truth_table(truth, injected, heads),
        "",
    ]


def deletion(deleted: xr.Dataset) -> list[str]:
    """DEL."""
    return [
        "## DEL: drop the neurons found for a memorized paragraph",
        "",
        "Changes from the original model: accuracy in percentage points (position-wise, teacher-forced), edit distance "
        "in tokens, perplexity of never-seen paragraphs.",
        "",
        *deletion_table(deleted),
        "",
        "![Accuracy lost](scoreboard-deletion.png)",
    ]
