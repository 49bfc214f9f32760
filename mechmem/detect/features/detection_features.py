"""Features of what a model says after prefixes, read while it decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.bounds import Count
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches, between
from mechmem.detect.decoding.decode_loop import decode_into, step_maker
from mechmem.detect.decoding.decoding_settings import DecodingSettings
from mechmem.detect.decoding.token_choice import TokenChoice
from mechmem.detect.features.chosen_features import feature_choice
from mechmem.detect.features.feature_arrays import MEANING, feature_coords, feature_dims
from mechmem.detect.features.feature_choice import ONLINE, FeatureChoice, FeatureGroup
from mechmem.detect.features.gradient_features import own_gradients
from mechmem.detect.features.step_features import StepFeatures
from mechmem.detect.features.text_features import hashed_counts
from mechmem.localize.capture_room import check_room
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public


@public("run")
def detection_features(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    features: Sequence[FeatureGroup] | FeatureGroup = ("output", "residual"),
    depths: Any = None,
    heads: Any = None,
    neurons: Any = None,
    counts: Any = None,
    decoding: DecodingSettings | None = None,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Let a model continue prefixes, and read at chosen steps what a detector could see there.

    At step k the model has said k tokens of its own: the newest token is at position prefix_len - 1 + k, and the
    distribution over the next one is known. Activations are those of decoding, with keys and values kept, as a monitor
    sees them; decoding goes on after tokens that end a text.

    Args:
        model: left as it is; hooks on it act on the prefix, and then on one new token after another.
        paragraphs: prefixes to continue; their continuations are the true ones.
        features: groups, by price: "output" (statistics of the distributions so far), "prefix" (how expected the
            prefix is), "residual", "lens" (the stream read by the unembedding), "heads", "neurons". Two are for
            comparison and no detector can run with them: "text" (hashed uni- and bigrams of the tokens alone) and
            "gradient" (by layer, of the NLL of what was said so far; one backward a step).
        depths: residual streams of "residual" and "lens", a number or several; depth d enters layer d, n_layers is the
            end of the body; None: all.
        heads: of "heads", (layer, head) pairs or names like "L1H2"; None: all.
        neurons: of "neurons", (layer, neuron) pairs.
        counts: how often each token id occurs in the corpus, [d_vocab]: adds the heads' attention to rare tokens, the
            rarest that together make up a tenth of the corpus.
        decoding: how text is decoded and at which steps features are read; None: greedily, `DecodingSettings()`.
        batch_size: paragraphs that decode together; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset with coordinates `paragraph` (ids), `k` and `pos` (prefix_len ...): output[paragraph, k, statistic],
        prefix[paragraph, prefix_statistic], residual[paragraph, k, depth, d_model], lens[paragraph, k, depth,
        lens_statistic], heads[paragraph, k, head_name, head_statistic], neurons[paragraph, k, neuron], text[paragraph,
        k, bucket], gradient[paragraph, k, layer], those that were asked for; said[paragraph, pos], the tokens;
        said_nll and said_z, their -log p (nats) and log p in standard deviations above its mean, under the model's own
        distribution; em[paragraph], leading tokens that are the true continuation's.

    Raises:
        InputError: an unknown group; a depth, head or neuron that is not there, or that no group uses; prefixes whose
            continuations exceed the context; an answer larger than the memory that is free; NaN or infinite values.
    """
    check_fit(model, paragraphs)
    choice = feature_choice(model, features, depths, heads, neurons, counts)
    return features_of_choice(model, paragraphs, choice, decoding or DecodingSettings(), batch_size, progress)


def features_of_choice(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    choice: FeatureChoice,
    decoding: DecodingSettings,
    batch_size: int | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """`detection_features` of a choice that was made before, such as a detector's."""
    length = decoding.length(paragraphs.continuation_len)
    ks = decoding.steps(length)
    _check_context(model, paragraphs.prefix_len, length)
    dataset = _empty(model, paragraphs, choice, ks, length)
    online = replace(choice, groups=tuple(group for group in choice.groups if group in ONLINE))
    begin, readout = step_maker(model, online)
    units = len(paragraphs) * (1 + len(ks) * ("gradient" in choice.groups))
    part = between(progress, 0, len(paragraphs), units)
    for rows in batches(len(paragraphs), chosen_batch_size(batch_size, model.W_E.device, 64), part):
        prompt, into = paragraphs.prefix[rows].to(model.W_E.device), dataset.isel(paragraph=rows)
        steps = begin(len(prompt), paragraphs.prefix_len + max(ks[-1], length))
        decode_into(into, steps, StepFeatures(online, readout, prompt=prompt), TokenChoice(decoding, prompt), prompt)
    _add_offline(dataset, model, paragraphs, choice, decoding, progress)
    true = paragraphs.continuation.cpu().numpy()[:, :length]
    matches = dataset.said.values[:, : true.shape[1]] == true
    em = np.cumprod(matches, 1).sum(1)
    attrs = {"units": "tokens", "higher": "more memorized", "long_name": "leading tokens said that are the true ones"}
    return dataset.assign(em=("paragraph", em, attrs))


def _add_offline(
    dataset: xr.Dataset,
    model: HookedTransformer,
    paragraphs: Paragraphs,
    choice: FeatureChoice,
    decoding: DecodingSettings,
    progress: ProgressLike,
) -> None:
    """Fill what follows from the texts that were said."""
    ks, said, count = tuple(dataset.k.values.tolist()), dataset.said.values, len(paragraphs)
    if "text" in choice.groups:
        whole = np.concatenate([paragraphs.prefix.cpu().numpy(), said], 1)
        dataset["text"].values[:] = hashed_counts(whole, paragraphs.prefix_len, ks)
    if "gradient" in choice.groups:
        first = said[:, 0]
        if decoding.temperature > 0:
            greedy = DecodingSettings(ks=(0,), max_new_tokens=1)
            none = replace(choice, groups=())
            first = features_of_choice(model, paragraphs, none, greedy).said.values[:, 0]
        total = count * (1 + len(ks))
        parts = [between(progress, count * (1 + number), count * (2 + number), total) for number in range(len(ks))]
        dataset["gradient"].values[:] = own_gradients(model, paragraphs.prefix, said, first, ks, parts)


def _empty(
    model: HookedTransformer, paragraphs: Paragraphs, choice: FeatureChoice, ks: tuple[int, ...], length: int
) -> xr.Dataset:
    """The answer, to be filled; refused where it does not fit in memory."""
    coords = {
        "paragraph": paragraphs.ids,
        "k": ("k", list(ks), {"units": "tokens", "long_name": "own tokens said"}),
        "pos": paragraphs.prefix_len + np.arange(length),
        **feature_coords(choice, model.cfg.d_model, model.cfg.n_layers),
    }
    dataset = xr.Dataset(coords=coords)
    sizes = dict(dataset.sizes)
    shapes = {group: tuple(sizes[dim] for dim in feature_dims(group)) for group in choice.groups}
    check_room(sum(4 * int(np.prod(shape)) for shape in shapes.values()) + 24 * len(paragraphs) * length, None)
    for group, shape in shapes.items():
        dataset[group] = (feature_dims(group), np.zeros(shape, np.float32), MEANING[group])
    said = {
        "said": (np.int64, {"units": "token id", "long_name": "tokens that the model said"}),
        "said_nll": (np.float64, {"units": "nats", "higher": "the model was less certain of what it said"}),
        "said_z": (np.float64, {"units": "standard deviations", "higher": "the token was more expected"}),
    }
    for name, (dtype, attrs) in said.items():
        dataset[name] = (("paragraph", "pos"), np.zeros((len(paragraphs), length), dtype), attrs)
    if choice.rare is not None:
        dataset["rare"] = ("rare_token", np.array(choice.rare), {"units": "token id"})
    return dataset


def _check_context(model: HookedTransformer, prefix_len: int, length: int) -> None:
    if prefix_len + length > model.cfg.n_ctx:
        raise InputError(
            f"got prefixes of {prefix_len} tokens and {length} tokens to say for a model with a context of "
            f"{model.cfg.n_ctx}; need at most the context together: cut the prefixes, or give a smaller max_new_tokens"
        )
