"""Which detectors are tried: few, and each named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mechmem.data.choices import check_choice
from mechmem.detect.detector_settings import DetectorSettings
from mechmem.detect.features.chosen_features import feature_choice
from mechmem.detect.features.feature_choice import OFFLINE, FeatureChoice, FeatureGroup
from mechmem.detect.probes.choose import Candidate, ProbeMethod
from mechmem.model.load import HookedTransformer

DetectorMethod = Literal["auto", "logistic", "boosting"]
# Read at one depth of several that are tried.
DEEP = ("residual", "lens")


def candidate_depths(layers: int) -> tuple[int, ...]:
    """After a third and two thirds of the layers, and at the end; never the embedding itself."""
    return tuple(sorted({max(1, round(layers * part / 3)) for part in (1, 2, 3)}))


def candidates_of(
    model: HookedTransformer,
    features: Sequence[FeatureGroup] | FeatureGroup | None,
    method: DetectorMethod,
    settings: DetectorSettings,
) -> list[Candidate]:
    """The detectors that cross-validation chooses from.

    1. Logistic regression on the groups without a depth ("output", "heads", ...), where there are any.
    2. The same with "residual" and "lens" at one depth, for each of the depths.
    3. With "auto", boosting on the groups of step 1 as well, those of a few columns: without "neurons" and what is not
       read while decoding. With "boosting", boosting on all that steps 1 and 2 name, and no logistic regression.

    Raises:
        InputError: an unknown method or group, or a depth, head or neuron that the model does not have or no group
            uses.
    """
    check_choice("method", method, DetectorMethod)
    if features is None:
        deep = method != "boosting" or settings.depths is not None
        features = ("output", "prefix", "residual") if deep else ("output", "prefix")
    groups = (features,) if isinstance(features, str) else tuple(features)
    whole = _whole_choice(model, groups, settings)
    kind: ProbeMethod = "boosting" if method == "boosting" else "logistic"
    plain = tuple(group for group in whole.groups if group not in DEEP)
    found = [Candidate(kind, _with(whole, plain, ()))] if plain else []
    if len(plain) < len(whole.groups):
        found += [Candidate(kind, _with(whole, whole.groups, (depth,))) for depth in whole.depths]
    few = tuple(group for group in plain if group != "neurons" and group not in OFFLINE)
    if method == "auto" and few:
        found.append(Candidate("boosting", _with(whole, few, ())))
    return found


def union(choices: Sequence[FeatureChoice]) -> FeatureChoice:
    """All features of several choices; tokens that are rare are those of the first choice that names some."""

    def together(name: str) -> tuple:
        return tuple(dict.fromkeys(value for choice in choices for value in getattr(choice, name)))

    rare = next((choice.rare for choice in choices if choice.rare is not None), None)
    groups, depths = together("groups"), tuple(sorted(together("depths")))
    return FeatureChoice(groups, depths, together("heads"), together("neurons"), rare)


def _whole_choice(
    model: HookedTransformer, groups: tuple[FeatureGroup, ...], settings: DetectorSettings
) -> FeatureChoice:
    depths = settings.depths
    if depths is None and set(groups) & set(DEEP):
        depths = candidate_depths(model.cfg.n_layers)
    choice = feature_choice(model, groups, depths, settings.heads or None, settings.neurons or None)
    return replace(choice, rare=settings.rare) if "heads" in groups else choice


def _with(whole: FeatureChoice, groups: tuple, depths: tuple[int, ...]) -> FeatureChoice:
    """Some groups of a choice, with no more than they use."""
    return FeatureChoice(
        groups,
        depths,
        whole.heads if "heads" in groups else (),
        whole.neurons if "neurons" in groups else (),
        whole.rare if "heads" in groups else None,
    )
