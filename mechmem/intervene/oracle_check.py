"""Which model can stand for the one that never read the targets."""

from __future__ import annotations

import torch

from mechmem.data.errors import InputError
from mechmem.data.fingerprint import fingerprint
from mechmem.model.load import HookedTransformer

SIZES = ("n_layers", "n_heads", "d_head", "d_model", "d_mlp", "d_vocab")


def check_oracle(
    original: HookedTransformer,
    edited: HookedTransformer,
    oracle: HookedTransformer | None,
    oracle_scale: HookedTransformer | None = None,
) -> None:
    """Refuse an oracle that does not say what the original would be without the targets.

    Raises:
        InputError: another shape or tokenizer, one of the models that are compared with it, the original's weights, or
            a scale without an oracle.
    """
    if oracle is None:
        if oracle_scale is not None:
            raise InputError("got oracle_scale without an oracle; need both: oracle_scale is the unit of its distance")
        return
    others = {"original": original, "edited": edited}
    _check("oracle", oracle, others, original, "trained without the targets")
    if oracle_scale is not None:
        _check("oracle_scale", oracle_scale, others | {"oracle": oracle}, original, "trained with another seed")


def _check(
    name: str, model: HookedTransformer, others: dict[str, HookedTransformer], original: HookedTransformer, how: str
) -> None:
    for other, known in others.items():
        # An edited model may have the oracle's very weights: then the edit is perfect.
        if model is known or (other != "edited" and _same_weights(model, known)):
            raise InputError(f"got the {other} model as {name}; need another model of its recipe, {how}")
    check_recipe(name, model, original, how)


def check_recipe(name: str, model: HookedTransformer, original: HookedTransformer, how: str) -> None:
    """Refuse a model of another shape or tokenizer.

    Args:
        name: of the argument.
        model: that was given.
        original: the one that it should be like.
        how: it should have been trained.

    Raises:
        InputError: says what differs.
    """
    sizes = [{size: getattr(each.cfg, size) for size in SIZES} for each in (model, original)]
    wrong = [size for size in SIZES if sizes[0][size] != sizes[1][size]]
    if wrong:
        got, need = (", ".join(f"{size} {each[size]}" for size in wrong) for each in sizes)
        raise InputError(f"got {name} with {got}; need the original's {need}: a model of its recipe, {how}")
    tokenizers = [each.tokenizer for each in (model, original)]
    if None not in tokenizers and fingerprint(tokenizers[0]) != fingerprint(tokenizers[1]):
        raise InputError(
            f"got {name} with another tokenizer than the original's; need the same: its ids mean other text"
        )


def _same_weights(one: HookedTransformer, other: HookedTransformer) -> bool:
    first, second = dict(one.named_parameters()), dict(other.named_parameters())
    return first.keys() == second.keys() and all(
        value.shape == second[name].shape and torch.equal(value.cpu(), second[name].cpu())
        for name, value in first.items()
    )
