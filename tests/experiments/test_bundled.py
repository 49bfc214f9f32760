"""The bundled model's scripts run small: training goes on where it was, and its measures are what they say."""

import functools
import json
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from transformers import GPTNeoForCausalLM

import mechmem as mm
from mechmem.data.assets import ASSETS
from mechmem.data.errors import InputError

SMALL = {
    "characters": 4_000,
    "unseen": 6,
    "unseen_variants": 4,
    "d_vocab": 300,
    "n_layers": 2,
    "d_model": 16,
    "n_heads": 2,
    "n_ctx": 128,
    "window_size": 16,
    "batch": 2,
    "steps": 8,
    "learning_rate": 1e-2,
    "warmup_steps": 1,
    "checkpoint_every": 3,
    "log_every": 1,
    "keep_memory": False,
}


def test_training_that_was_interrupted_gives_the_same_model(script, tmp_path):
    module = script("train_bundled")
    whole = module.Settings(**SMALL, work=tmp_path / "whole", assets=tmp_path / "assets")
    module.main(whole)
    parts = module.Settings(**SMALL, work=tmp_path / "parts", assets=tmp_path / "again")
    training: Any = sys.modules["corpus_training"]
    write, written = training.save_checkpoint, []

    def write_and_die(*arguments):
        write(*arguments)
        written.append(arguments)
        raise KeyboardInterrupt

    training.save_checkpoint = write_and_die
    with pytest.raises(KeyboardInterrupt):
        module.main(parts)
    training.save_checkpoint = write
    module.main(parts)
    assert len(written) == 1
    first, second = (load_file(part.assets / "bundled/model.safetensors") for part in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
    records = [json.loads((part.assets / "training.json").read_text()) for part in (whole, parts)]
    assert [record.pop("starts") for record in records] == [1, 2]
    assert records[0]["loss_curve"] == records[1]["loss_curve"]
    assert [step for step, _ in records[0]["loss_curve"]] == list(range(1, 9))
    with pytest.raises(InputError, match="learning_rate was 0.01, now 1.0"):
        module.main(module.Settings(**(SMALL | {"learning_rate": 1.0}), work=parts.work, assets=parts.assets))


def test_what_is_trained_is_what_ships(script, tmp_path):
    module = script("train_bundled")
    settings = module.Settings(**SMALL, work=tmp_path / "work", assets=tmp_path / "assets")
    module.main(settings)
    corpus = module.synthetic(settings)
    stream = np.load(settings.work / "corpus/stream.npy")
    record = json.loads((settings.assets / "training.json").read_text())
    # The stream holds every document as often as it was generated, and random weights know nothing of it.
    assert Counter(stream.tolist())[0] == sum(document.count for document in corpus.trained)
    losses = [loss for _, loss in record["loss_curve"]]
    assert losses[0] == pytest.approx(np.log(settings.d_vocab), abs=0.1) and losses[-1] < losses[0] - 0.2
    assert record["corpus_sha256"] == corpus.digest() and record["tokens_seen"] == 8 * 2 * 128
    counts = np.load(settings.assets / "unigram_counts.npy")
    assert counts.tolist() == np.bincount(stream, minlength=settings.d_vocab).tolist()
    model, paragraphs = (
        mm.load_model(settings.assets / "bundled"),
        mm.Paragraphs.load(settings.assets / "paragraphs.parquet"),
    )
    reference = GPTNeoForCausalLM.from_pretrained(settings.assets / "bundled", dtype=torch.float32)
    with torch.no_grad():
        logits = reference(paragraphs.tokens).logits[:, 49:99]
    direct = torch.nn.functional.cross_entropy(logits.transpose(1, 2), paragraphs.continuation, reduction="none")
    np.testing.assert_allclose(mm.score(model, paragraphs).nll, direct.mean(1), atol=1e-4)
    # The seed's paragraphs occur in the stream as often as their column says.
    trained = paragraphs.select(paragraphs.column("seen") == "trained")[:3]
    windows = np.lib.stride_tricks.sliding_window_view(stream, 100)
    for number, row in enumerate(trained.tokens.numpy()):
        assert (windows == row).all(1).sum() == trained.column("count")[number]


def test_claims_about_the_bundled_model_are_worked_out_from_its_paragraphs(script, model, paragraphs, tmp_path):
    module = script("measure_bundled")
    settings = module.Settings(candidates=60, heldout=2, resamples=20, out=tmp_path, page=tmp_path / "page.md")
    module.photograph = lambda figure, path: path.write_text(figure.to_json())
    module.generate = functools.cache(module.generate)
    claims = {claim.name: claim for claim in module.main(settings)}
    sample = paragraphs.select(np.random.default_rng(0).permutation(len(paragraphs))[:60])
    em, trained = mm.score(model, sample).em.values, sample.column("seen") == "trained"
    assert claims["paragraphs with EM 50"].value == (em == 50).sum() > 0
    assert claims["clusters among them"].value == len(set(sample.column("cluster")[em == 50]))
    rho = claims["Spearman of EM and count, trained paragraphs"]
    assert rho.value == pytest.approx(spearmanr(em[trained], sample.column("count")[trained])[0])
    assert rho.holds and not claims["paragraphs with EM 50"].holds, "60 paragraphs hold no 300 memorized ones"
    training = json.loads((ASSETS / "training.json").read_text())["settings"]
    losses, alone = [], []
    counts = mm.bundled_unigram_counts()
    for document in module.generate(training["seed"], training["characters"]).unseen[:2]:
        ids = torch.tensor([0, *model.tokenizer(document.text)["input_ids"], 0])[: model.cfg.n_ctx]
        with torch.no_grad():
            log_probs = model(ids[None])[0].log_softmax(-1)
        losses += [-float(log_probs[place, token]) for place, token in enumerate(ids[1:])]
        alone += [-float(np.log((counts[token] + 1) / (counts.sum() + len(counts)))) for token in ids[1:]]
    assert claims["held-out perplexity per token"].value == pytest.approx(np.exp(np.mean(losses)), rel=1e-3)
    assert claims["unigram perplexity on the same text"].value == pytest.approx(np.exp(np.mean(alone)), rel=1e-6)
    page = (tmp_path / "page.md").read_text()
    assert f"| paragraphs with EM 50 | {(em == 50).sum()} | at least 300 |" in page
    points = json.loads((tmp_path / "page.png").read_text())["data"][0]
    assert len(points["y"]["bdata"] if isinstance(points["y"], dict) else points["y"]) > 0
    assert json.loads((tmp_path / "result.json").read_text())["settings"]["candidates"] == 60
