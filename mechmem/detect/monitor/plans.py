"""What a monitor does, from the arguments that it is given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.detect.detector import Detector
from mechmem.detect.features.feature_choice import OFFLINE
from mechmem.detect.monitor.actions import Action, Block, Stop, Watch
from mechmem.detect.monitor.generation import Plan, Prompt
from mechmem.detect.monitor.ngram_filter import NgramFilter
from mechmem.detect.monitor.source import Source
from mechmem.detect.monitor.steering import Steering
from mechmem.model.head_names import parsed_heads

MonitorAction = Literal["flag", "stop", "block", "steer"]
USED: Mapping[str, tuple[str, ...]] = {
    "flag": (),
    "stop": (),
    "block": ("memorized", "n"),
    "steer": ("heads", "neurons", "factor"),
}
# Tokens of an n-gram that "block" never completes, as MemFree's authors chose.
NGRAM = 10


def made_plan(
    detector: Any, source: Source, action: MonitorAction, false_alarms: float, options: Mapping[str, Any]
) -> Plan:
    """Check all arguments of a monitor, and put them together.

    Args:
        detector: for this model.
        source: the model.
        action: what is done at an alarm.
        false_alarms: share of generations that may raise a false alarm.
        options: the monitor's `memorized`, `n`, `heads`, `neurons`, `factor`; None: not given.

    Raises:
        InputError: as `Monitor`.
    """
    if not isinstance(detector, Detector):
        raise InputError(
            f"got {type(detector).__name__} as detector; need a Detector: mechmem.Detector.load(folder), or "
            "mechmem.train_detector(model, memorized, other)"
        )
    check_choice("action", action, MonitorAction)
    given = [name for name, value in options.items() if value is not None and name not in USED[action]]
    if given:
        raise InputError(
            f"action '{action}' does not use {', '.join(given)}; omit {'it' if len(given) == 1 else 'them'}"
        )
    offline = [group for group in detector.choice.groups if group in OFFLINE]
    if offline:
        raise InputError(
            f"got a detector that reads {', '.join(offline)}, which is not computed while decoding; need one trained "
            "on output, prefix, residual, lens, heads or neurons"
        )
    detector.identity.check(source.identity)
    steering = _steering(source, options) if action == "steer" else None
    act = _action(action, options)
    threshold = detector.threshold(false_alarms)
    if math.isinf(threshold) and action != "block":
        needed = math.ceil(round(1 / false_alarms, 9)) - 1
        warnings.warn(
            f"got a detector whose threshold comes from {len(detector.null)} clusters; need {needed} for a rate of "
            f"false alarms of {false_alarms}: it never fires, so no alarm is ever raised; allow more false alarms, or "
            "train on more paragraphs",
            UserWarning,
            stacklevel=4,
        )
    return Plan(detector.to(source.device), threshold, act, steering, action == "stop", source)


def _action(action: MonitorAction, options: Mapping[str, Any]) -> Callable[[Prompt], Action]:
    if action == "stop":
        return lambda prompt: Stop(prompt.ends[0] if prompt.ends else None)
    if action == "block":
        known = _known(options["memorized"], options["n"])
        return lambda prompt: Block(known, prompt.tokens, prompt.padding)
    return lambda _: Watch(steers=action == "steer")


def _known(memorized: Any, n: int | None) -> NgramFilter:
    if isinstance(memorized, NgramFilter):
        if n is not None and n != memorized.n:
            raise InputError(f"got n={n} and a filter of {memorized.n}-grams; omit n")
        return memorized
    if not isinstance(memorized, Paragraphs):
        raise InputError(
            f"got {type(memorized).__name__} as memorized; need the Paragraphs whose n-grams are blocked: "
            "Monitor(detector, model, 'block', memorized=paragraphs)"
        )
    return NgramFilter.of(memorized, n=NGRAM if n is None else n)


def _steering(source: Source, options: Mapping[str, Any]) -> Steering:
    heads = _units("heads", parsed_heads(options["heads"] or ()), source.layers, source.heads)
    neurons = _units("neurons", parsed_heads(options["neurons"] or ()), source.layers, source.neurons)
    if not heads and not neurons:
        raise InputError(
            "got action 'steer' without heads or neurons; need those that localization found: heads=['L1H2'], or "
            "neurons=mechmem.top_neurons(scores, 0.001)"
        )
    factor = 0.0 if options["factor"] is None else options["factor"]
    return Steering(heads, neurons, factor, source.device)


def _units(name: str, units: Sequence[tuple[int, int] | None], layers: int, width: int) -> list[tuple[int, int]]:
    wrong = [unit for unit in units if unit is None or not (0 <= unit[0] < layers and 0 <= unit[1] < width)]
    if wrong:
        one = name.removesuffix("s")
        raise InputError(
            f"got {name} {wrong[:3]}; need (layer, {one}) pairs, layer below {layers} and {one} below {width}, counted "
            "from zero"
        )
    return sorted({unit for unit in units if unit is not None})
