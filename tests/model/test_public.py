"""What every public function that takes a model checks before it begins."""

import pytest

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.scores import kl, score
from mechmem.model.hooks import with_hooks
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public


@public("refuse", renamed={"paras": "paragraphs"})
def lengths(model: HookedTransformer, paragraphs: Paragraphs, *, progress=None) -> int:  # noqa: ARG001
    return len(paragraphs)


def test_a_model_with_hooks_is_refused_or_run(tiny_model, tiny_paragraphs):
    def zero(z, hook):  # noqa: ARG001
        return z * 0

    with with_hooks(tiny_model, {"blocks.1.attn.hook_z": zero}):
        with pytest.raises(InputError, match=r"hooks on blocks\.1\.attn\.hook_z, and lengths would not run them"):
            lengths(tiny_model, tiny_paragraphs)
        hooked = score(tiny_model, tiny_paragraphs)
    assert lengths(tiny_model, tiny_paragraphs) == 11
    assert abs(hooked.nll - score(tiny_model, tiny_paragraphs).nll).max() > 0.01


def test_other_kinds_of_arguments_are_refused_with_a_way_on(tiny_model, tiny_paragraphs):
    with pytest.raises(InputError, match=r"got Linear as model; need a HookedTransformer: mechmem\.load_model"):
        import torch

        lengths(torch.nn.Linear(1, 1), tiny_paragraphs)  # pyright: ignore[reportArgumentType]
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
