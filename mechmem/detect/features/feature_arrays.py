"""Features of paragraphs as labelled arrays, and as the matrix whose columns a probe takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechmem.data.errors import InputError
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.features.head_features import head_statistics
from mechmem.detect.features.prompt_scores import PROMPT_STATISTICS
from mechmem.detect.features.running_output import OUTPUT_STATISTICS
from mechmem.detect.features.step_features import LENS_STATISTICS, feature_names
from mechmem.detect.features.text_features import BUCKETS
from mechmem.model.head_names import head_name

# Dimensions after `paragraph` and `k`.
DIMS: Mapping[str, tuple[str, ...]] = {
    "output": ("statistic",),
    "prefix": ("prefix_statistic",),
    "residual": ("depth", "d_model"),
    "lens": ("depth", "lens_statistic"),
    "heads": ("head_name", "head_statistic"),
    "neurons": ("neuron",),
    "text": ("bucket",),
    "gradient": ("layer",),
}
ACTIVATION = {"units": "activation", "higher": "the activation is larger"}
MEANING: Mapping[str, Mapping[str, str]] = {
    "output": {"long_name": "statistics of the next token's distribution and of the tokens said"},
    "prefix": {"long_name": "how expected the prefix is"},
    "residual": {"long_name": "residual stream at the newest token; depth d enters layer d", **ACTIVATION},
    "lens": {"long_name": "what the stream, read by the unembedding, says of the model's first choice"},
    "heads": {"long_name": "what heads write and attend to at the newest token"},
    "neurons": {"long_name": "neurons after their activation function, at the newest token", **ACTIVATION},
    "text": {"long_name": "signed counts of hashed uni- and bigrams of prefix and own tokens, of length 1"},
    "gradient": {
        "long_name": "norm of the gradient of the mean NLL of the tokens said; at k = 0 of the first choice",
        "units": "nats per token per unit of weight",
        "higher": "the text's likelihood depends more on the layer",
    },
}


def feature_dims(group: str) -> tuple[str, ...]:
    """Dimensions of a group's array; the prefix has none for the step."""
    return ("paragraph", *(() if group == "prefix" else ("k",)), *DIMS[group])


def feature_coords(choice: FeatureChoice, d_model: int, n_layers: int) -> dict[str, Any]:
    """Labels of every dimension that the choice's groups have."""
    known: dict[str, Any] = {
        "statistic": list(OUTPUT_STATISTICS),
        "prefix_statistic": list(PROMPT_STATISTICS),
        "depth": list(choice.depths),
        "d_model": np.arange(d_model),
        "lens_statistic": list(LENS_STATISTICS),
        "head_name": [head_name(head) for head in choice.heads],
        "head_statistic": list(head_statistics(choice)),
        "neuron": [neuron_name(neuron) for neuron in choice.neurons],
        "bucket": np.arange(BUCKETS),
        "layer": np.arange(n_layers),
    }
    used = {dim for group in choice.groups if group in DIMS for dim in DIMS[group]}
    return {name: values for name, values in known.items() if name in used}


def neuron_name(neuron: tuple[int, int]) -> str:
    """Layer 3, neuron 17 -> 3.17."""
    return f"{neuron[0]}.{neuron[1]}"


def columns_of(
    features: xr.Dataset, choice: FeatureChoice
) -> tuple[Float[np.ndarray, "paragraph k feature"], tuple[str, ...]]:
    """The columns of a choice, as `StepFeatures` gives them at every step.

    Args:
        features: what `detection_features` returned.
        choice: of groups, depths, heads and neurons that are among them.

    Returns:
        The matrix, float32, and the columns' names.

    Raises:
        InputError: a group, depth, head or neuron that the features do not have.
    """
    parts = [_group(features, group, choice) for group in choice.groups]
    names = feature_names(choice, features.sizes.get("d_model"), features.sizes.get("layer"))
    return np.concatenate(parts, -1), names


def _group(features: xr.Dataset, group: str, choice: FeatureChoice) -> Float[np.ndarray, "paragraph k feature"]:
    if group not in features:
        known = [str(name) for name in features.data_vars if str(name) in DIMS]
        raise InputError(f"got features without {group}; these have {', '.join(known)}: compute it with features=")
    array = features[group]
    if group in ("residual", "lens"):
        array = _chosen(array, "depth", choice.depths)
    elif group == "heads":
        array = _chosen(array, "head_name", [head_name(head) for head in choice.heads])
        array = _chosen(array, "head_statistic", head_statistics(choice))
    elif group == "neurons":
        array = _chosen(array, "neuron", [neuron_name(neuron) for neuron in choice.neurons])
    values = array.transpose(*feature_dims(group)).values.astype(np.float32, copy=False)
    if group == "prefix":
        values = np.repeat(values[:, None], features.sizes["k"], 1)
    return values.reshape(*values.shape[:2], -1)


def _chosen(array: xr.DataArray, dim: str, wanted: Sequence[Any]) -> xr.DataArray:
    known = array[dim].values.tolist()
    missing = [label for label in wanted if label not in known]
    if missing or not wanted:
        raise InputError(f"got {dim} {missing or 'none'}; these features have {', '.join(map(str, known))}")
    if list(wanted) == known:
        return array
    return array.isel({dim: [known.index(label) for label in wanted]})
