"""What each variable of a judged detector is: unit, meaning, and what higher means."""

from __future__ import annotations

ATTRIBUTES: dict[str, dict[str, str]] = {
    "auroc": {
        "units": "1",
        "higher": "better",
        "long_name": "probability that a recited text scores higher than another one; a tie counts one half",
    },
    "tpr_at_1": {
        "units": "1",
        "higher": "better",
        "long_name": "share of recited texts above thresholds at a false positive rate of 1 %, from other clusters",
    },
    "tpr_at_01": {
        "units": "1",
        "higher": "better",
        "long_name": "the same at 0.1 %; NaN where there are too few other texts for such a threshold",
    },
    "fpr_at_1": {"units": "1", "higher": "worse", "long_name": "false positive rate that these thresholds realized"},
    "fpr_at_01": {"units": "1", "higher": "worse", "long_name": "false positive rate that these thresholds realized"},
    "precision": {
        "units": "1",
        "higher": "better",
        "long_name": "share of flagged texts that are recited, at the base rate, with tpr_at_1 and the larger of 1 % "
        "and the realized false positive rate",
    },
    "calibration_error": {
        "units": "1",
        "higher": "worse",
        "long_name": "expected calibration error: mean of |observed - predicted| over 10 bins of equal mass, at even "
        "odds; NaN for what gives no probabilities",
    },
    "flagged": {
        "units": "1",
        "higher": "better",
        "long_name": "share of recitations flagged at some step of the generation",
    },
    "flagged_early": {
        "units": "1",
        "higher": "better",
        "long_name": "share of recitations flagged with at least 80 % of the tokens still to come",
    },
    "lead_time": {
        "units": "tokens",
        "higher": "earlier",
        "long_name": "median of the tokens still to come at the first flag, among flagged recitations",
    },
    "false_alarm_rate": {
        "units": "1",
        "higher": "worse",
        "long_name": "share of other texts flagged at some step of the generation",
    },
    "false_alarms_per_1000": {
        "units": "alarms per 1,000 tokens",
        "higher": "worse",
        "long_name": "false alarms, at most one a generation, per 1,000 tokens of other texts",
    },
    "predicted": {"units": "1", "long_name": "mean probability in each bin, over the steps of k, at even odds"},
    "observed": {"units": "1", "long_name": "share of each bin that recites, at even odds"},
    "in_bin": {"units": "1", "long_name": "mass of each bin, at even odds"},
}
