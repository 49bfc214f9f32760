"""Models whose embedding has more ids than their tokenizer."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mechmem.data.errors import InputError
from mechmem.data.fingerprint import fingerprint
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.circuits import head_circuits
from mechmem.localize.heads import rare_token_attention
from mechmem.measure.scores import kl, score
from mechmem.model.check import check_model
from mechmem.model.export import export
from mechmem.model.lean.model import LeanModel
from mechmem.model.load import load_model
from mechmem.model.vocabulary import vocabulary

KNOWN, PADDED = 283, 296
FAMILIES = ["gpt_neo", "gpt_neox", "gpt2"]


@pytest.fixture
def write_padded(write_checkpoint, write_tokenizer):
    """A checkpoint of 296 ids with a tokenizer of 283, and transformers' model, which prefers the surplus ids."""

    def write(family: str):
        folder, reference = write_checkpoint(family, vocab_size=PADDED)
        reference.get_output_embeddings().weight.data[KNOWN:] *= 4
        reference.save_pretrained(folder)
        write_tokenizer(folder, KNOWN)
        return folder, reference

    return write


def ids(rows: int = 5, length: int = 30) -> torch.Tensor:
    return torch.randint(0, KNOWN, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("processing", ["raw", "folded"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_surplus_ids_are_never_chosen(family, processing, write_padded):
    folder, reference = write_padded(family)
    tokens = ids()
    assert int((reference(tokens).logits.argmax(-1) >= KNOWN).sum()) > 10, "transformers would choose them"
    model = load_model(folder, processing=processing)
    assert (model.cfg.d_vocab, vocabulary(model)) == (PADDED, KNOWN)
    lean = LeanModel(model)
    for logits in (model(tokens), lean.unembed(lean.forward(tokens))):
        assert int(logits.argmax(-1).max()) < KNOWN
        assert float(logits.softmax(-1)[..., KNOWN:].max()) == 0.0
    assert int(score(model, Paragraphs(tokens, prefix_len=10)).greedy.max()) < KNOWN
    for sampled in (False, True):
        text = model.generate(
            tokens, 10, do_sample=sampled, temperature=50.0, stop_at_eos=False, prepend_bos=False, verbose=False
        )
        assert isinstance(text, torch.Tensor) and int(text.max()) < KNOWN


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_probabilities_are_those_of_transformers_without_the_surplus(family, write_padded):
    """Theorem: transformers' NLL is higher by -log(1 - the surplus ids' share)."""
    folder, reference = write_padded(family)
    tokens = ids()
    logits = reference(tokens).logits.double()
    ours = load_model(folder)(tokens).double().log_softmax(-1)[..., :KNOWN]
    assert torch.allclose(ours, logits[..., :KNOWN].log_softmax(-1), atol=2e-5)
    theirs = logits.log_softmax(-1)
    share = theirs[..., KNOWN:].exp().sum(-1, keepdim=True)
    assert float(share.min()) > 1e-4
    assert torch.allclose(theirs[..., :KNOWN], ours + torch.log1p(-share), atol=1e-4)
    assert bool(check_model(folder).ok.all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_type_excludes_them_and_differences_stay_finite(dtype, write_padded):
    folder, _ = write_padded("gpt_neo")
    model = load_model(folder, dtype=dtype)
    edited = copy.deepcopy(model)
    edited.blocks[1].mlp.W_out.data *= 1.5
    paragraphs = Paragraphs(ids(), prefix_len=10)
    assert bool(np.isfinite(kl(model, edited, paragraphs)).all()) and float(kl(model, edited, paragraphs).min()) > 0
    assert int(score(edited, paragraphs).greedy.max()) < KNOWN


def test_gradients_are_finite_and_zero_for_surplus_ids(write_padded):
    folder, _ = write_padded("gpt_neo")
    model = load_model(folder)
    model(ids(), return_type="loss").backward()
    gradient = model.unembed.W_U.grad
    assert gradient is not None and bool(gradient.isfinite().all()) and bool(gradient[:, :KNOWN].any())
    assert not bool(gradient[:, KNOWN:].any())


def test_exporting_gives_back_the_padded_checkpoint(write_padded, tmp_path):
    folder, _ = write_padded("gpt_neo")
    model = load_model(folder)
    export(model, tmp_path / "out")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].view(torch.int32), after[name].view(torch.int32)) for name in before)
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == PADDED
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    again = load_model(tmp_path / "out")
    assert vocabulary(again) == KNOWN and torch.equal(again(ids()), model(ids()))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert reference.config.vocab_size == PADDED


def test_an_edited_bias_of_other_ids_is_still_refused(write_padded, tmp_path):
    folder, _ = write_padded("gpt_neo")
    model = load_model(folder)
    model.unembed.b_U.data[5] = 1.0
    with pytest.raises(InputError, match=r"'unembed.b_U' is not zero"):
        export(model, tmp_path / "out")


def test_paragraphs_of_the_tokenizer_before_padding_are_read(write_padded):
    folder, _ = write_padded("gpt_neo")
    plain = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>")
    mark = fingerprint(plain)
    plain.add_special_tokens({"pad_token": "[PAD]"})
    plain.save_pretrained(folder)
    model = load_model(folder)
    assert vocabulary(model) == KNOWN + 1, "[PAD] is a token"
    paragraphs = Paragraphs(ids(), prefix_len=10, tokenizer=mark)
    assert len(score(model, paragraphs).paragraph) == 5
    surplus = ids()
    surplus[2, 4] = KNOWN + 1
    with pytest.raises(InputError, match="got the token id 284 for a model with a vocabulary of 284 tokens"):
        score(model, Paragraphs(surplus, prefix_len=10))


def test_counts_of_the_tokenizers_own_ids_do_for_heads(write_padded):
    folder, _ = write_padded("gpt_neo")
    model, paragraphs, counts = load_model(folder), Paragraphs(ids(), prefix_len=10), np.arange(1, KNOWN + 1)
    padded = np.pad(counts, (0, PADDED - KNOWN))
    for own, whole in (
        (head_circuits(model, paragraphs, counts), head_circuits(model, paragraphs, padded)),
        (
            rare_token_attention(model, paragraphs, counts, permutations=3),
            rare_token_attention(model, paragraphs, padded, permutations=3),
        ),
    ):
        assert own.identical(whole)
