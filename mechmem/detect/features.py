"""Features of what a model says after prefixes, read while it decodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from mechmem.data.bounds import Count
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.detect.chosen_features import feature_choice
from mechmem.detect.decoding_settings import DecodingSettings
from mechmem.detect.feature_arrays import MEANING, feature_coords, feature_dims
from mechmem.detect.feature_choice import FeatureChoice, FeatureGroup
from mechmem.detect.hooked_steps import HookedSteps
from mechmem.detect.lean_steps import LeanSteps
from mechmem.detect.readout import Readout, hooked_readout, lean_readout
from mechmem.detect.sampling import TokenChoice
from mechmem.detect.step_features import StepFeatures, check_finite
from mechmem.localize.capture_room import check_room
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.forward import check_fit
from mechmem.model.lean.model import LeanModel, runs_lean
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
            prefix is), "residual", "lens" (the stream read by the unembedding), "heads", "neurons".
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
        lens_statistic], heads[paragraph, k, head_name, head_statistic], neurons[paragraph, k, neuron], those that
        were asked for; said[paragraph, pos], the tokens; said_nll and said_z, their -log p (nats) and log p in
        standard deviations above its mean, under the model's own distribution; em[paragraph], leading tokens that are
        the true continuation's.

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
    begin, readout = step_maker(model, choice)
    for rows in batches(len(paragraphs), chosen_batch_size(batch_size, model.W_E.device, 64), progress):
        prompt, into = paragraphs.prefix[rows].to(model.W_E.device), dataset.isel(paragraph=rows)
        steps = begin(len(prompt), paragraphs.prefix_len + max(ks[-1], length))
        _decode(steps, StepFeatures(choice, readout, prompt=prompt), TokenChoice(decoding, prompt), prompt, into)
    true = paragraphs.continuation.cpu().numpy()[:, :length]
    matches = dataset.said.values[:, : true.shape[1]] == true
    em = np.cumprod(matches, 1).sum(1)
    attrs = {"units": "tokens", "higher": "more memorized", "long_name": "leading tokens said that are the true ones"}
    return dataset.assign(em=("paragraph", em, attrs))


def step_maker(
    model: HookedTransformer, choice: FeatureChoice
) -> tuple[Callable[[int, int], LeanSteps | HookedSteps], Readout]:
    """How a model decodes best: a function of (rows, positions in the end), and the weights that read its activations.

    A model with hooks, or of an architecture that the forward without hooks does not know, runs as it is.
    """
    if not runs_lean(model):
        return lambda rows, _: HookedSteps(model, choice, rows), hooked_readout(model)
    lean = LeanModel(model)
    return lambda rows, capacity: LeanSteps(lean, choice, rows, capacity), lean_readout(lean)


def _decode(
    steps: LeanSteps | HookedSteps,
    features: StepFeatures,
    choose: TokenChoice,
    prompt: Int[Tensor, "row pos"],
    into: xr.Dataset,
) -> None:
    """Decode a batch of prompts, and write its features into views of the answer's rows."""
    length, place = into.sizes["pos"], {k: index for index, k in enumerate(into.k.values.tolist())}
    last = max(*place, length - 1)
    new, said = prompt, None
    for k in range(last + 1):
        prefix = k == 0 and "prefix" in features.choice.groups
        states = steps.step(new, keep=k in place, whole=prefix)
        if prefix:
            assert steps.end is not None
            features.read_prompt_stream(steps.end)
        features.advance(states, said)
        if k in place:
            for group, values in features.read(states).items():
                target = into[group].values if group == "prefix" else into[group].values[:, place[k]]
                target[:] = check_finite(values).reshape(target.shape).cpu().numpy()
        if k > 0 and k <= length:
            _keep_said(into, k - 1, features)
        said = choose(states.logits)
        if k < length:
            into.said.values[:, k] = said.cpu().numpy()
        new = said[:, None]
    if last < length:
        assert said is not None
        features.output.hear(said)
        _keep_said(into, last, features)


def _keep_said(into: xr.Dataset, column: int, features: StepFeatures) -> None:
    """Write what the token said last was worth."""
    into.said_nll.values[:, column] = features.output.said_nll
    into.said_z.values[:, column] = features.output.said_z


def _empty(
    model: HookedTransformer, paragraphs: Paragraphs, choice: FeatureChoice, ks: tuple[int, ...], length: int
) -> xr.Dataset:
    """The answer, to be filled; refused where it does not fit in memory."""
    coords = {
        "paragraph": paragraphs.ids,
        "k": ("k", list(ks), {"units": "tokens", "long_name": "own tokens said"}),
        "pos": paragraphs.prefix_len + np.arange(length),
        **feature_coords(choice, model.cfg.d_model),
    }
    dataset = xr.Dataset(coords=coords)
    sizes = dict(dataset.sizes)
    shapes = {group: tuple(sizes[dim] for dim in feature_dims(group)) for group in choice.groups}
    check_room(sum(4 * int(np.prod(shape)) for shape in shapes.values()) + 24 * len(paragraphs) * length, None)
    for group, shape in shapes.items():
        dataset[group] = (feature_dims(group), np.zeros(shape, np.float32), {"long_name": MEANING[group]})
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
