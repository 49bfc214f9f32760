"""Which sign of an effect is blue: that of an activation which helps or restores the clean text, in any direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechmem.show.maps.heatmap import End

# Metrics of which a lower value (-1) or a higher one (1) is better for the clean text.
BETTER = {"nll": -1, "logit_difference": 1, "em": 1}
NAMES = {"nll": "NLL", "logit_difference": "logit difference", "kl": "KL from the unpatched run", "em": "EM"}
OWN = "the activation that is replaced helps the text that is scored"


def blue_end(attrs: Mapping[str, Any], direction: str | None) -> End:
    """The end of an effect that is blue.

    Args:
        attrs: of the result: metric, normalized, base and source, as far as they are known.
        direction: "noising", "denoising", "mean" (with the sign of noising); None: unknown.
    """
    if direction is None or attrs.get("normalized"):
        # Normalized, 1 is as the run that activations come from, whichever that is.
        return "higher"
    better = BETTER.get(str(attrs.get("metric")))
    if better is not None:
        return "higher" if (better > 0) == (direction == "denoising") else "lower"
    base, source = attrs.get("base"), attrs.get("source")
    # A metric that is not known here: towards the run that activations come from.
    return "lower" if base is not None and source is not None and float(source) < float(base) else "higher"


def meaning(attrs: Mapping[str, Any], direction: str | None) -> str:
    """What blue and orange mean, in a sentence."""
    metric = metric_name(attrs)
    if direction is None:
        return "Blue: above zero; orange: below."
    moves = {"higher": "raises", "lower": "lowers"}[blue_end(attrs, direction)]
    if attrs.get("normalized"):
        moves = "moves the run towards the other: 1 is as that run,"
    if attrs.get("metric") == "kl":
        return "Blue: the patch changes the prediction."
    does = f"helps the clean text (replacing it {moves} {metric})"
    if direction == "denoising":
        does = f"restores the clean text (putting it in {moves} {metric})"
    if direction == "mean":
        does = f"helps the clean text (replacing it {moves} {metric}, on average over both runs)"
    return f"Blue ({direction}): the clean activation {does}; orange: the other way."


def metric_name(attrs: Mapping[str, Any]) -> str:
    """The metric as one says it."""
    known = str(attrs.get("metric", "the metric"))
    return NAMES.get(known, known)
