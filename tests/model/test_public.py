"""What every public function that takes a model checks before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.scores import kl, score
from mechmem.model.hooks import with_hooks
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.weights.masks import Mask


@public("refuse", renamed={"paras": "paragraphs"})
def lengths(model: HookedTransformer, paragraphs: Paragraphs, *, progress=None) -> int:  # noqa: ARG001
    return len(paragraphs)


@public("run", unused=("draws", "seed"))
def without_draws(model: HookedTransformer, *, batch_size: int = 1) -> int:  # noqa: ARG001
    return batch_size


def test_an_argument_without_effect_is_dropped_with_a_warning(tiny_model):
    old: dict[str, Any] = {"seed": 3}
    with pytest.warns(DeprecationWarning, match="without_draws: seed has no effect any more; omit it"):
        assert without_draws(tiny_model, batch_size=5, **old) == 5
    unknown: dict[str, Any] = {"draw": 3}
    with pytest.raises(TypeError, match="draw"):
        without_draws(tiny_model, **unknown)


def test_a_model_with_hooks_is_refused_or_run(tiny_model, tiny_paragraphs):
    def zero(z, hook):  # noqa: ARG001
        return z * 0

    with with_hooks(tiny_model, {"blocks.1.attn.hook_z": zero}):
        with pytest.raises(InputError, match=r"hooks on blocks\.1\.attn\.hook_z, and lengths would not run them"):
            lengths(tiny_model, tiny_paragraphs)
        hooked = score(tiny_model, tiny_paragraphs)
    assert lengths(tiny_model, tiny_paragraphs) == 11
    assert abs(hooked.nll - score(tiny_model, tiny_paragraphs).nll).max() > 0.01


@public("refuse")
def optional(paragraphs: Paragraphs, model: HookedTransformer | None = None) -> int:
    return len(paragraphs) + (model is None)


@pytest.mark.parametrize("kind", [TransformerBridge, torch.nn.Linear, str])
def test_another_kind_of_model_is_refused_with_a_way_on(kind, tiny_paragraphs):
    sentence = rf"got {kind.__name__} as model; need a HookedTransformer: load one with mechmem\.load_model"
    wrong = kind.__new__(kind)
    with pytest.raises(InputError, match=sentence):
        lengths(wrong, tiny_paragraphs)
    with pytest.raises(InputError, match=sentence):
        optional(tiny_paragraphs, model=wrong)


def test_a_model_that_may_be_left_out_is_checked_where_it_is_given(tiny_model, tiny_paragraphs):
    assert optional(tiny_paragraphs) == optional(tiny_paragraphs, None) == 12
    assert optional(tiny_paragraphs, tiny_model) == 11
    with with_hooks(tiny_model, {"blocks.1.attn.hook_z": lambda z, hook: z}):  # noqa: ARG005
        with pytest.raises(InputError, match="optional would not run them"):
            optional(tiny_paragraphs, tiny_model)


def test_other_kinds_of_arguments_are_refused_with_a_way_on(tiny_model):
    with pytest.raises(InputError, match="got list as paragraphs; need Paragraphs"):
        lengths(tiny_model, ["text"])  # pyright: ignore[reportArgumentType]


def test_old_names_of_arguments_are_understood_for_a_release(tiny_model, tiny_paragraphs):
    with pytest.warns(DeprecationWarning, match="lengths: paras is called paragraphs now"):
        assert lengths(tiny_model, paras=tiny_paragraphs) == 11  # pyright: ignore[reportCallIssue]
    with pytest.warns(DeprecationWarning, match="kl: before is called original now"):
        kl(before=tiny_model, edited=tiny_model, paragraphs=tiny_paragraphs)  # pyright: ignore[reportCallIssue]
    with pytest.raises(InputError, match="got paras and paragraphs, which are one argument"):
        lengths(tiny_model, paras=tiny_paragraphs, paragraphs=tiny_paragraphs)  # pyright: ignore[reportCallIssue]


def test_true_draws_a_bar(tiny_model, tiny_paragraphs, capsys):
    score(tiny_model, tiny_paragraphs, progress=True)
    assert "score" in capsys.readouterr().err


def test_paragraphs_of_another_tokenizer_are_refused(tiny_model, tiny_paragraphs):
    other = Paragraphs(tiny_paragraphs.tokens, 13, tokenizer="50257-0123")
    with pytest.raises(InputError, match=r"another tokenizer \(50,257 tokens\) than the model's \(61\)"):
        score(tiny_model, other)
    score(tiny_model, Paragraphs(tiny_paragraphs.tokens, 13, tokenizer="61-0123"))


@public("run")
def judged(model: HookedTransformer, sets: Mapping[str, Paragraphs], mask: Mask | None = None) -> int:  # noqa: ARG001
    return len(sets)


def test_sets_and_other_nouns_are_checked(tiny_model, tiny_paragraphs):
    assert judged(tiny_model, {"targets": tiny_paragraphs}) == 1
    with pytest.raises(InputError, match="got Paragraphs as sets; need a dict from names to Paragraphs"):
        judged(tiny_model, tiny_paragraphs)
    with pytest.raises(InputError, match=r"got list as sets\['targets'\]; need Paragraphs"):
        judged(tiny_model, {"targets": [1]})  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"got str as mask; need a mechmem\.Mask"):
        judged(tiny_model, {"targets": tiny_paragraphs}, mask="top")  # pyright: ignore[reportArgumentType]
