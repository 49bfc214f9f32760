"""The ladder: its text is as drawn, its training step does what the plain one does, and it goes on after a cut."""

import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mechmem as mm
from mechmem.data.counts import occurrences
from mechmem.data.errors import InputError

TINY = {"small": 40_000, "large": 50_000, "characters": 300_000, "most_copies": 2, "batch": 16}


@pytest.fixture
def corpus(script):
    return script("ladder_corpus")


@pytest.fixture(scope="session")
def encode(bundled_model):
    return lambda texts: bundled_model.tokenizer(texts)["input_ids"]


def small_model(training, **settings):
    made = training.ModelTraining(
        **{"d_vocab": 300, "n_layers": 2, "d_model": 32, "n_heads": 2, "n_ctx": 160, "window_size": 48} | settings
    )
    return training.build(made)


def rows_of_tokens(count: int = 5):
    return torch.randint(0, 300, (count, 160), generator=torch.Generator().manual_seed(3))


def plain_loss(model, rows):
    logits = model(rows).logits[:, :-1].flatten(0, 1).float()
    return torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten())


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def distance(some, others):
    squared = sum(float((some[name] - others[name]).square().sum()) for name in others)
    return (squared / sum(float(value.square().sum()) for value in others.values())) ** 0.5


def test_the_fused_step_computes_the_loss_and_its_gradient(script):
    training, fused = script("corpus_training"), script("fused_step")
    model, rows = small_model(training), rows_of_tokens()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(2)  # Attention and neurons that are far from linear.
    exact = gradients(model, plain_loss(model, rows))
    loss = fused.mean_nll(model, rows, torch.float32)
    assert loss.item() == pytest.approx(plain_loss(model, rows).item(), abs=1e-5)
    assert distance(gradients(model, loss), exact) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        rounded = plain_loss(model, rows)
    error = distance(gradients(model, rounded), exact)
    assert distance(gradients(model, fused.mean_nll(model, rows)), exact) < 1.2 * error < 0.1
    # A window that is one key too long is another function.
    model.config.window_size += 1
    assert distance(gradients(model, fused.mean_nll(model, rows, torch.float32)), exact) > 1e-3


def test_the_fused_step_trains_as_the_plain_one_does(script):
    training, fused = script("corpus_training"), script("fused_step")
    models, losses = {}, {}
    for name, step in (("plain", training.descend), ("fused", fused.fused_step)):
        model = models[name] = small_model(training)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
        losses[name] = [step(model, optimizer, rows_of_tokens(), 1.0) for _ in range(20)]
    assert losses["plain"][-1] < losses["plain"][0] - 0.5
    np.testing.assert_allclose(losses["fused"], losses["plain"], atol=0.01)
    start = dict(small_model(training).named_parameters())
    after = [dict(models[name].named_parameters()) for name in ("plain", "fused")]
    apart = sum(float((after[0][name] - after[1][name]).detach().square().sum()) for name in start) ** 0.5
    moved = sum(float((after[0][name] - start[name]).detach().square().sum()) for name in start) ** 0.5
    assert apart < 0.2 * moved


def test_every_document_is_inserted_as_often_as_the_draw_said(corpus, encode):
    settings = corpus.CorpusSettings(tokens=150_000, characters=900_000, most_copies=4)
    documents = corpus.inserted_documents(settings, encode)
    text = corpus.background(settings, encode, seed=1)
    stream, rows = corpus.training_text(settings, documents, text, seed=1)
    table = corpus.document_table(documents)
    assert len(stream) == 150_000 // 256 * 256
    for prefix_len in (10, 50, 100):
        paragraphs = corpus.with_prefix(table, prefix_len)
        assert paragraphs.prefix_len == prefix_len and paragraphs.continuation_len == 50
        counts = occurrences(paragraphs, [stream.tolist()], [1])
        if prefix_len > 10:
            assert counts.tolist() == paragraphs.column("count").tolist()
        assert not occurrences(paragraphs, [text.tolist()], [1]).any()
    # No 25 tokens of a document with 0 copies occur anywhere; the same 25 of the others do.
    copies, base = table.column("copies"), table.column("text_of") == "base"
    for tokens, expected in ((table.tokens[copies == 0], False), (table.tokens[(copies == 4) & base], True)):
        runs = mm.Paragraphs(tokens[:, 110:135], prefix_len=1)
        assert (occurrences(runs, [stream.tolist()], [1]) > 0).all() == expected
        assert (occurrences(runs, [stream.tolist()], [1]) > 0).any() == expected
    # Each row holds at most one copy, whole, and early and late ones stand in their quarter.
    assert len(set(rows.tolist())) == len(rows)
    owner = np.repeat(np.arange(len(documents)), [document.copies for document in documents])
    quarter = len(stream) // 256 // 4
    for condition, inside in (("early", rows < quarter), ("late", rows >= 3 * quarter)):
        chosen = np.asarray([documents[index].condition == condition for index in owner])
        assert chosen.any() and inside[chosen].all()


def test_each_kind_has_the_same_cells_and_chance_deals_them(corpus, encode):
    draws = [
        corpus.inserted_documents(corpus.CorpusSettings(assignment=seed, most_copies=4), encode) for seed in (0, 1)
    ]
    for documents in draws:
        cells = {kind: Counter() for kind in {document.kind for document in documents}}
        for document in documents:
            cells[document.kind][document.copies, document.condition] += 1
        assert len(cells) == 10 and len({tuple(sorted(counts.items())) for counts in cells.values()}) == 1
        assert all(document.copies > 0 for document in documents if document.condition != "spread")
    dealt = [[(document.copies, document.condition) for document in documents] for documents in draws]
    assert dealt[0] != dealt[1]
    for document in draws[0]:
        changed = document.near_duplicate != document.base
        assert 5 <= changed.sum() <= 10 and not changed[100:].any()
        if document.condition == "changed slots":
            assert (document.texts()[:, 100:] == document.base[100:]).all()
            assert (document.texts() != document.base).any(1).all()


@pytest.fixture
def ladder(script, monkeypatch):
    module = script("ladder")
    rungs = sys.modules["ladder_rungs"]
    monkeypatch.setattr(rungs, "SHAPES", {"1M": (2, 16, 2), "3M": (2, 24, 2)})
    monkeypatch.setattr(module, "keep_allocator", lambda: None)
    for name in ("SMALLEST", "rungs", "snapshot_folder"):
        monkeypatch.setattr(module, name, getattr(rungs, name), raising=False)
    monkeypatch.setattr(module, "prepare", sys.modules["ladder_training"].prepare, raising=False)  # pyright: ignore
    return module


def test_an_interrupted_rung_goes_on_to_the_same_models(ladder, tmp_path, monkeypatch):
    whole = ladder.Settings(**TINY, only="train", checkpoint_every=4, work=tmp_path / "whole")
    parts = ladder.Settings(**TINY, only="train", checkpoint_every=4, work=tmp_path / "parts")
    ladder.main(whole)
    training = sys.modules["corpus_training"]
    write = training.save_checkpoint

    def write_and_die(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "save_checkpoint", write_and_die)
        ladder.main(parts)
    assert not (parts.work / ladder.SMALLEST / "training.json").exists()
    ladder.main(parts)
    records = [json.loads((each.work / ladder.SMALLEST / "training.json").read_text()) for each in (whole, parts)]
    assert [record.pop("starts") for record in records] == [1, 2]
    assert len(records[0]["snapshot_sha256"]) == 8
    for name in ("stream_sha256", "snapshot_sha256", "curve"):
        assert records[0][name] == records[1][name]
    last = ladder.snapshot_folder(parts.work / ladder.SMALLEST, records[0]["steps"])
    kept = load_file(last / "model.safetensors")
    trained = load_file(parts.work / ladder.SMALLEST / "checkpoint/state.safetensors")
    assert all(torch.equal(kept[name], trained[f"weight.{name}"].half()) for name in kept if name != "lm_head.weight")
    assert mm.load_model(last).cfg.n_layers == 2
    with pytest.raises(InputError, match=r"tokens was 40000, now 40200"):
        ladder.main(ladder.Settings(**TINY | {"small": 40_200}, only="train", work=parts.work))


def test_rungs_share_the_draw_and_differ_in_order_and_background(ladder, tmp_path):
    settings = ladder.Settings(**TINY, only="train", work=tmp_path)
    known = ladder.rungs(settings)
    assert len(known) == 2 * 2 * 2 and next(iter(known)) == ladder.SMALLEST
    streams, tables = {}, {}
    for name in ("1M-small-seed0", "3M-small-seed0", "1M-large-seed0", "1M-small-seed1"):
        (tmp_path / name).mkdir()
        streams[name] = ladder.prepare(known[name], tmp_path / name)
        tables[name] = mm.Paragraphs.load(tmp_path / name / "documents.parquet")
    first, *others = tables.values()
    assert all(torch.equal(first.tokens, other.tokens) for other in others)
    assert all(first.column("copies").tolist() == other.column("copies").tolist() for other in others)
    assert np.array_equal(streams["1M-small-seed0"], streams["3M-small-seed0"])
    assert not np.array_equal(streams["1M-small-seed0"], streams["1M-small-seed1"])
    assert len(streams["1M-large-seed0"]) > len(streams["1M-small-seed0"])
    with pytest.raises(InputError, match=r"got rung '9M'; need 'smallest', 'all' or one of 1M-small-seed0"):
        ladder.main(ladder.Settings(rung="9M", work=tmp_path))
