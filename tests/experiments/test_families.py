"""The scripts that take a model's folder, run small on random GPT-2 and Pythia folders and other lengths."""

import dataclasses
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs

SIZE = {"vocab_size": 211, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.4}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**SIZE, n_embd=48, n_layer=2, n_head=3, n_inner=80, n_positions=128),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        **SIZE, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=80,
        max_position_embeddings=128,
    ),
}  # fmt: skip
# Each script's smallest settings.
SMALL: dict[str, dict[str, Any]] = {
    "activation_gradients": {},
    "contrastive_gradients": {"each": 3},
    "head_attention": {"searched": 4, "shown": 2, "permutations": 19},
    "parameter_gradients": {"each": 3},
    "perturbation": {"memorized": 2, "other": 2, "permutations": 19},
    "patching": {"pairs": 2},
    "rare_tokens": {"each": 4, "permutations": 19},
    "noise": {"each": 2},
    "attribution": {"pairs": 2, "candidates": 60, "sites": ("z",), "kl_sites": (), "planted": False, "steps": 2},
    "faithfulness": {
        "paragraphs": 2, "candidates": 60, "permutations": 19, "shares": (0.5, 1.0), "neuron_methods": ("activations",),
        "random": 1,
    },
    "choose_learning_rate": {
        "methods": ("npo",), "targets": 3, "steps": 2, "sparse_rates": (1e-3,), "dense_rates": (1e-4,)
    },
    "scoreboard": {"targets": 2, "others": 3, "keep": 2, "planted": 1, "methods": ("activations", "random")},
    "unlearning": {
        "seeds": (0,), "all_seeds": (0,), "clusters_each": 2, "targets": 2, "held": 2, "tuning_targets": 2, "steps": 2,
        "relearning": 1, "own_steps": 1, "rows": ("NPO, top 0.1 %",),
    },
    "edit_localization": {
        "models": 1, "targets": 2, "held": 2, "neurons": 0.5, "learning_rate": 3e-2, "steps": 25, "relearning": 2,
        "rows": ("NPO, top 0.1 %",),
    },
    "spans": {"documents": 6, "min_match": (45,), "strides": (50,)},
}  # fmt: skip


@pytest.fixture(scope="session", params=CONFIGS)
def folder(request, tmp_path_factory) -> Path:
    """A model; rows.parquet of 20 + 20 tokens, of which it knows all, some or nothing; documents.npy that it knows."""
    place = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param]()).eval()
        prefixes = torch.randint(0, 211, (60, 50))
        other = torch.randint(0, 211, (60, 20))
    model.save_pretrained(place / "model")
    rows = continued(model, prefixes[:, :20], 20)
    # A wrong token ends what greedy decoding reproduces: after all, most, some or none of the continuation.
    for row in range(20, 60):
        wrong = 20 + (15, 8, 0, 1)[row % 4] + row % 2
        rows[row, wrong:] = torch.where(rows[row, wrong:] == other[row, wrong - 20 :], 0, other[row, wrong - 20 :])
    Paragraphs(rows, 20).save(place / "rows.parquet")
    np.save(place / "documents.npy", continued(model, prefixes[:8], 50).numpy())
    return place


def continued(model: Any, prefix: torch.Tensor, count: int) -> torch.Tensor:
    ones = torch.ones_like(prefix)
    return model.generate(prefix, attention_mask=ones, max_new_tokens=count, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize("name", SMALL)
def test_a_script_runs_on_a_folder_of_another_family_and_other_lengths(name, folder, script, tmp_path):
    module = script(name)
    fields = {field.name for field in dataclasses.fields(module.Settings)}
    corpus = folder / ("documents.npy" if name == "spans" else "rows.parquet")
    given = {"model": str(folder / "model"), "corpus": str(corpus), "device": "cpu", "out": tmp_path / "out"}
    settings = module.Settings(**given, **SMALL[name], **({"page": None} if "page" in fields else {}))
    with warnings.catch_warnings():
        # A few steps of a random model remove nothing, and a tiny sample has constant inputs.
        warnings.simplefilter("ignore")
        module.main(settings)
    assert any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", SMALL)
def test_a_corpus_without_memorized_paragraphs_ends_in_a_sentence(name, script, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 4096, (12, 100)))
    out = tmp_path / "out"
    options = ["--corpus", str(tmp_path / "ids.npy"), "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
    module = script(name)
    with pytest.raises(SystemExit) as ended:
        module.start(module.main, module.Settings, module.__doc__)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.search(r"^error: .*(score more candidates|read more of them).*\(--corpus\)$", said, re.M), said
    assert "Traceback" not in said and not out.exists()


@pytest.mark.parametrize("name", SMALL)
def test_another_model_needs_text_and_writes_no_page_of_docs(name, script, tmp_path):
    module = script(name)
    with pytest.raises(InputError, match=r"got no corpus for gpt2; .* with --corpus"):
        module.main(module.Settings(model="gpt2", out=tmp_path))
    other = module.Settings(model="gpt2", corpus="c", out=tmp_path)
    if hasattr(other, "page"):
        assert other.page == tmp_path / module.Settings().page.name
        assert module.Settings().page.parent == Path("docs")
        assert module.Settings(model="gpt2", corpus="c", page=None).page is None
