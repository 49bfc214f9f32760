"""One set of paragraphs on several models: what each can be made to say, against counts and prefix lengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from mechmem.data.argument_checks import check_paragraphs
from mechmem.data.bounds import Count, checked
from mechmem.data.errors import InputError
from mechmem.data.fingerprint import fingerprint_of_file, vocabulary_size
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, part_of
from mechmem.measure.scaling_curves import with_curves
from mechmem.measure.scores import ATTRIBUTES, HIGHER, score
from mechmem.model.hub import find_folder
from mechmem.model.load import HookedTransformer, load_model

STEP = 10


@checked
def scaling(
    models: Sequence[str | Path],
    paragraphs: Paragraphs,
    *,
    prefix_lens: Sequence[Count] | None = None,
    device: str | torch.device | None = None,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Score the same paragraphs on a suite of models, with prefixes of several lengths before the same continuation.

    Carlini et al. 2023 ("Quantifying Memorization Across Neural Language Models") find that what a model can be made to
    say grows log-linearly with the count, with the model's size and with the length of the prefix. The result has the
    curves and the slope of each of the three laws.

    1. Load each model, one at a time, and score the paragraphs at each prefix length as `score` does.
    2. Sort them into ranges of counts, 0, 1, 2-3, 4-7 and so on; take means in each, with intervals by cluster.
    3. Fit the share extractable against log2 of the count, of the prefix length and of the weights of all layers.

    Args:
        models: folders, hub names or "bundled", of one tokenizer; in memory one after the other.
        paragraphs: with a column `count`, how often each occurs in the training text; a column `cluster` widens the
            intervals as near-duplicates demand.
        prefix_lens: tokens of the prefix that are given, the last ones; None: 10, 20, ... and the paragraphs' own.
        device: where the models go; None: a GPU if there is one.
        batch_size: paragraphs of one forward; None: chosen for the machine.
        progress: called with (done, total), over all models and lengths.

    Returns:
        Dataset over `model` (as given; `n_weights`: of all attention and MLP matrices), `prefix_len` and
        `paragraph` (`count`, `cluster`): em (tokens) and nll (nats per token) as of `score`; p_extractable, the
        probability that sampling at temperature 1 says the whole continuation, exp(-sum of token NLL). Over
        `count_range` (lowest count; `n_paragraphs`, `n_clusters`): share_extractable (EM is the whole continuation),
        mean_em, mean_nll and mean_p_extractable, each with `_low` and `_high`. The laws, in share per doubling:
        per_count_doubling (of paragraphs with count 1 or more), per_prefix_doubling [model], and per_size_doubling
        [prefix_len], NaN where all models, lengths or counts are equal.

    Raises:
        InputError: no model, one that is named twice, models of different tokenizers or of another one than the
            paragraphs', no column `count`, or a prefix longer than the paragraphs'; before a model is loaded.
    """
    check_paragraphs("paragraphs", paragraphs)
    names = _names(models)
    lengths = _lengths(prefix_lens, paragraphs)
    if not paragraphs.has("count"):
        raise InputError(
            "got paragraphs without a column 'count'; need how often each occurs in the training text: scan the corpus "
            "(mechmem scan --corpus FILE --out scanned.parquet), or add the column with with_columns(count=...)"
        )
    _check_tokenizers(names, paragraphs)
    parts, weights = [], []
    for number, name in enumerate(names):
        model = load_model(name, device=device)
        report = part_of(progress, number, len(names))
        parts.append(prefix_scores(model, paragraphs, lengths, batch_size=batch_size, progress=report))
        weights.append(model.cfg.n_params)
        del model
    scores = xr.concat(parts, "model").assign_coords(model=names, n_weights=("model", weights))
    return with_curves(scores, paragraphs.continuation_len)


def prefix_scores(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    prefix_lens: Sequence[int],
    *,
    batch_size: int | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """em, nll and p_extractable of one model, [prefix_len, paragraph], as `scaling` describes them."""
    found = []
    for number, length in enumerate(prefix_lens):
        shorter = cut_prefix(paragraphs, length)
        scores = score(model, shorter, batch_size=batch_size, progress=part_of(progress, number, len(prefix_lens)))
        chance = np.exp(-scores.token_nll.astype(np.float64).sum("pos"))
        found.append(xr.Dataset({"em": scores.em, "nll": scores.nll, "p_extractable": chance}))
    result = xr.concat(found, "prefix_len", combine_attrs="override").assign_coords(prefix_len=list(prefix_lens))
    columns = {"cluster": paragraphs.clusters} | (
        {"count": paragraphs.column("count")} if paragraphs.has("count") else {}
    )
    result = result.assign_coords({name: ("paragraph", np.asarray(values)) for name, values in columns.items()})
    for name in ("em", "nll"):
        result[name].attrs = ATTRIBUTES[name] | {"higher": HIGHER[name]}
    result.p_extractable.attrs = {
        "units": "1",
        "long_name": "probability that sampling says the whole continuation",
        "higher": "more memorized",
    }
    return result


def cut_prefix(paragraphs: Paragraphs, prefix_len: int) -> Paragraphs:
    """The same continuations after the last `prefix_len` tokens of the prefix alone."""
    start = paragraphs.prefix_len - prefix_len
    table = paragraphs.table
    if table is None or "id" not in table.column_names:
        # Ids made of the tokens would change with them.
        paragraphs = paragraphs.with_columns(id=paragraphs.ids)
    return Paragraphs(paragraphs.tokens[:, start:], prefix_len, paragraphs.table, paragraphs.tokenizer)


def _names(models: Sequence[str | Path]) -> list[str]:
    names = [str(model) for model in models]
    if not names or len(set(names)) < len(names) or not all(isinstance(model, str | Path) for model in models):
        raise InputError(
            f"got {len(names)} models, {len(set(names))} of them different; need folders or names, each once"
        )
    return names


def _lengths(prefix_lens: Sequence[int] | None, paragraphs: Paragraphs) -> list[int]:
    own = paragraphs.prefix_len
    if prefix_lens is None:
        return sorted({*range(STEP, own, STEP), own})
    lengths = sorted(set(prefix_lens))
    if not lengths or lengths[-1] > own:
        raise InputError(
            f"got prefix lengths {lengths} for paragraphs with a prefix of {own} tokens; need at least one, and none "
            "longer: read the corpus with a longer prefix_len"
        )
    return lengths


def _check_tokenizers(names: Sequence[str], paragraphs: Paragraphs) -> None:
    """Refuse models whose ids mean other tokens, before any is loaded; `check_fit` looks again at each."""
    known = {"the paragraphs": paragraphs.tokenizer} if paragraphs.tokenizer is not None else {}
    for name in names:
        path = find_folder(name) / "tokenizer.json"
        mark = fingerprint_of_file(path) if path.is_file() else None
        for other, theirs in known.items():
            if mark is not None and mark != theirs:
                raise InputError(
                    f"{name} has another tokenizer ({vocabulary_size(mark):,} tokens) than {other} "
                    f"({vocabulary_size(theirs):,}); need models of one tokenizer: compare those of one family"
                )
        known |= {} if mark is None else {name: mark}
