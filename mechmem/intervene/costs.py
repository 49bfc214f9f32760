"""What models make of each paragraph, and how far they are from each other: the numbers that `evaluate` averages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.intervene.attacks.sampling import sampler_log_probs
from mechmem.intervene.baseline import Baseline
from mechmem.measure.decode import edit_distances
from mechmem.measure.outputs import HookedOutputs, LeanOutputs, outputs_of
from mechmem.measure.scores import kl_of_logits, score_logits
from mechmem.model.load import HookedTransformer

# Units and what higher means; those of each model first, then those of the pair.
EACH = {
    "em": ("tokens", "more memorized"),
    "match_fraction": ("1", "more memorized"),
    "edit_distance": ("tokens", "less memorized"),
    "exact": ("1", "more memorized"),
    "nll": ("nats per token", "less memorized"),
}
BOTH = {"kl": ("nats per token", "the models differ more"), "changed_top1": ("1", "the models differ more")}
# Of each model, where an oracle is given: its own is the value to reach.
BESIDE = {
    "p_extractable": ("1", "more memorized"),
    "min_k_nll": ("nats per token", "less memorized"),
    "oracle_kl": ("nats per token", "further from the oracle"),
}
SCALE = {"oracle_scale": ("nats per token", "two trained models differ more")}
# Of the sampler whose probability of the text is taken, and of Min-K%: the share of the tokens.
TOP_K = 40
MIN_K = 0.2
# Logits held at once for each model: 128 MB of float32.
_LOGITS_AT_ONCE = 2**25
Outputs = LeanOutputs | HookedOutputs


@dataclass(frozen=True)
class Compared:
    """The models that are compared.

    Attributes:
        original, edited: the pair.
        oracle: a model that was trained without the targets, or None.
        oracle_scale: another trained model, or None.
        baseline: where results of models that stay the same are kept; None: nowhere.
    """

    original: HookedTransformer
    edited: HookedTransformer
    oracle: HookedTransformer | None = None
    oracle_scale: HookedTransformer | None = None
    baseline: Baseline | None = None

    def readers(self) -> dict[str, Reader]:
        """Name in the dimension `model` -> its reader, and "scale", which is no row."""
        models = {"before": self.original, "after": self.edited, "oracle": self.oracle, "scale": self.oracle_scale}
        more = self.oracle is not None
        kept = {name: self._kept(model) for name, model in models.items() if model is not None}
        return {name: Reader(model, kept[name], more) for name, model in models.items() if model is not None}

    def _kept(self, model: HookedTransformer) -> Baseline | None:
        """Where this model's results are kept: the edited model's nowhere."""
        if model is self.original:
            return self.baseline
        return None if self.baseline is None or model is self.edited else self.baseline.beside(model)


class Reader:
    """One model's part: its outputs, and where they are kept.

    Attributes:
        outputs: what the model predicts and produces.
        kept: None: nowhere.
    """

    def __init__(self, model: HookedTransformer, kept: Baseline | None, more: bool) -> None:
        """Read a model.

        Args:
            model: hooks on it are run.
            kept: where its results are kept.
            more: whether the values of `BESIDE` are wanted.
        """
        self.outputs = outputs_of(model)
        self.kept = None if isinstance(self.outputs, HookedOutputs) else kept
        self._more = more

    def once(self, what: str, paragraphs: Paragraphs, compute: Any) -> Any:
        """What `compute` returns, kept where there is somewhere to keep it."""
        if self.kept is None:
            return compute()
        return self.kept.once(what, paragraphs, self._more, compute)

    def costs(self, batch: Paragraphs) -> dict[str, Any]:
        """The columns that the logits come from, the greedy tokens and the model's own values."""
        return self.once("costs", batch, lambda: _alone(self.outputs, batch, self._more))

    def columns(self, batch: Paragraphs) -> Float[Tensor, "paragraph pos d"]:
        """The columns alone."""
        return self.once("columns", batch, lambda: self.outputs.columns(batch.tokens, batch.prefix_len))


def costs_of(readers: dict[str, Reader], paragraphs: Paragraphs, batch_size: int, progress: ProgressLike) -> xr.Dataset:
    """As `paragraph_costs` describes them, of models that are being read."""
    parts: dict[str, list[np.ndarray]] = {}
    models = [name for name in readers if name != "scale"]
    for rows in batches(len(paragraphs), batch_size, progress):
        batch = paragraphs[rows]
        found = {name: readers[name].costs(batch) for name in models}
        values = {name: np.stack([found[model][name] for model in models]) for name in EACH}
        values |= _between(readers, found, batch)
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
    data, about = {}, EACH | BOTH | BESIDE | SCALE
    for name, values in parts.items():
        dims = ("model", "paragraph")[-values[0].ndim :]
        data[name] = (dims, np.concatenate(values, axis=-1), dict(zip(("units", "higher"), about[name], strict=True)))
    coords = {"model": models, "paragraph": paragraphs.ids, "cluster": ("paragraph", paragraphs.clusters)}
    return xr.Dataset(data, coords, {"prefix_len": paragraphs.prefix_len, "ties": "lowest id"})


@torch.no_grad()
def _alone(model: Outputs, batch: Paragraphs, more: bool) -> dict[str, Any]:
    """What one model makes of a batch: the columns that its logits come from, and its own values."""
    true = batch.continuation.cpu()
    columns = model.columns(batch.tokens, batch.prefix_len)
    scored = [_scored(model.logits(columns[rows]), true[rows], more) for rows in _at_once(model, columns)]
    found = {name: torch.cat([part[name].cpu() for part in scored]).numpy() for name in scored[0]}
    rows, length, em, greedy = np.arange(len(true)), true.shape[1], found["em"], found["greedy"]
    # The forward's own choice at the first mismatch: a near-tie cannot turn out otherwise while decoding.
    rival = greedy[rows, np.minimum(em, length - 1)]
    produced = model.greedy(batch.tokens, batch.prefix_len, em, rival)
    values = {"exact": em == length, "edit_distance": edit_distances(produced, true.numpy()), "columns": columns}
    return found | values | {"match_fraction": (greedy == true.numpy()).mean(-1)}


def _scored(logits: Float[Tensor, "paragraph pos d_vocab"], true: Tensor, more: bool) -> dict[str, Tensor]:
    found = score_logits(logits, true)
    wanted = {name: found[name] for name in ("em", "nll", "greedy")}
    if more:
        lowest = max(1, round(MIN_K * true.shape[1]))
        wanted["min_k_nll"] = found["token_nll"].topk(lowest, dim=-1).values.mean(-1)
        wanted["p_extractable"] = sampler_log_probs(logits, true, 1.0, TOP_K).sum(-1).exp()
    return wanted


@torch.no_grad()
def _between(readers: dict[str, Reader], found: dict[str, dict[str, Any]], batch: Paragraphs) -> dict[str, np.ndarray]:
    """What compares two models: [paragraph], or [model, paragraph] for what compares each with the oracle."""
    before, after = (found[name] for name in ("before", "after"))
    values = {"changed_top1": (before["greedy"] != after["greedy"]).mean(-1)}
    pairs = {("before", "after")} | {(name, "oracle") for name in found if "oracle" in found}
    columns = {name: one["columns"] for name, one in found.items()}
    if "scale" in readers:
        columns["scale"] = readers["scale"].columns(batch)
        pairs.add(("before", "scale"))
    parts: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in pairs}
    for rows in _at_once(readers["before"].outputs, before["columns"]):
        logits = {name: readers[name].outputs.logits(column[rows]) for name, column in columns.items()}
        for pair in pairs:
            first, second = (logits[name] for name in pair)
            # Rounding can leave a KL of models that hardly differ a little below 0.
            parts[pair].append(kl_of_logits(first, second.to(first.device)).clamp_min(0).cpu())
    divergence = {pair: torch.cat(each).numpy() for pair, each in parts.items()}
    values["kl"] = divergence["before", "after"]
    if "oracle" in found:
        own = {name: found[name] for name in found}
        values |= {name: np.stack([each[name] for each in own.values()]) for name in BESIDE if name != "oracle_kl"}
        values["oracle_kl"] = np.stack([divergence[name, "oracle"] for name in found])
    if "scale" in readers:
        values["oracle_scale"] = divergence["before", "scale"]
    return values


def _at_once(model: Outputs, columns: Float[Tensor, "paragraph pos d"]) -> Iterator[slice]:
    """Paragraphs whose logits are held together."""
    return batches(len(columns), max(1, _LOGITS_AT_ONCE // (columns.shape[1] * model.d_vocab)))
