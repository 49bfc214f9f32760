"""Benchmarks run small: both implementations compute the same, and the page holds what was measured."""

import numpy as np
import pytest
import torch

import mechmem as mm

SMALL = mm.PlantedSettings(2, 4, 64, 256, 200, 100, layer=1, head=2, memories=4, others=2)


def test_both_attentions_compute_the_same(script, tmp_path):
    module = script("benchmarks/attention")
    settings = module.Settings(rounds=2, sizes=((2, 3, 8, 5, 9), (1, 2, 4, 7, 7)), page=tmp_path / "page.md")
    float32, bfloat16 = np.array_split(module.main(settings), 2)
    assert all(row["difference"] < 1e-5 for row in float32)
    assert all(1e-5 < row["difference"] < 0.1 for row in bfloat16), "sixteen bits differ, and not by much"
    assert all(row["ratio"] > 0 and row["fused"] > 0 for row in float32)
    assert f"| float32 | 2 x 3 x 8 | 5 x 9 | {float32[0]['fused']:.2f} |" in (tmp_path / "page.md").read_text()


@pytest.mark.filterwarnings("ignore:.*has no tokenizer", "ignore:the edit removed nothing")
def test_both_edits_take_the_same_steps(script, tmp_path):
    module = script("benchmarks/intervene")
    shape = module.Shape(layers=2, heads=4, width=64, vocabulary=200, context=100)
    settings = module.Settings(
        rounds=1, steps=1, keep=2, fraction=0.01, shape=shape, memory=False, page=tmp_path / "page.md"
    )
    found = module.main(settings)
    assert set(found) == {"sparse", "dense"} and all(len(row["seconds"]["ours"]) == 1 for row in found.values())
    ratio = found["dense"]["seconds"]["paper"][0] / found["dense"]["seconds"]["ours"][0]
    assert f"| {ratio:.1f} | {ratio:.1f} | {ratio:.1f} | nan |" in (tmp_path / "page.md").read_text()
    # Ours moves the mask's weights alone; the paper's coupled decay moves all, since gradients alone are masked.
    truth = module.planted(shape.planted(memories=4, others=2, seed=0))
    mm.export(truth.model, tmp_path / "model")
    model, memorized = mm.load_model(tmp_path / "model"), truth.memorized[:1]
    mask = module.masks(model, memorized, 0.01)["sparse"]
    ours = module.our_way(model, memorized, truth.other, mask, 1)
    paper = module.papers_way(tmp_path / "model", memorized, truth.other, mask, 1)
    changed = {
        name: sum(int((new != old).sum()) for new, old in zip(one.parameters(), model.parameters(), strict=True))
        for name, one in (("ours", ours), ("paper", paper))
    }
    assert 0 < changed["ours"] <= mask.count < changed["paper"]


@pytest.mark.filterwarnings("ignore:.*has no tokenizer", "ignore:the edit removed nothing")
def test_peak_memory_holds_the_model(script, tmp_path):
    module = script("benchmarks/intervene")
    truth = module.planted(module.Shape(2, 4, 64, 200, 100).planted(memories=4, others=2, seed=0))
    mm.export(truth.model, tmp_path)
    truth.memorized[:1].save(tmp_path / "memorized.parquet")
    truth.other.save(tmp_path / "keep.parquet")
    ours = module.peak(tmp_path, "ours", "dense", 1)
    assert 0 <= ours < 100, "GB above what the process held"


def test_a_capture_to_a_file_is_measured_in_a_process_of_its_own(script, tmp_path, monkeypatch):
    module = script("benchmarks/capture")
    shape, page = module.Shape(layers=2, heads=2, width=16, vocabulary=50, context=100), tmp_path / "page.md"
    settings = module.Settings(rounds=2, paragraphs=4, batch_size=2, sizes=(3,), planned=30, shape=shape, page=page)
    monkeypatch.setattr(module, "apart", lambda work, *arguments: work(*arguments))
    monkeypatch.chdir(tmp_path)
    found = module.main(settings)
    assert all(len(ratios) == 2 for ratios in found["speed"].values()) and 0 <= found["memory"][3] < 1e9
    values = 3 * 2 * 2 * 100 * 8 * 4
    assert values < found["bytes"] < 3 * values and "A file of 30 paragraphs takes 0 GB." in page.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


def test_rounds_alternate_and_the_warm_up_does_not_count(script):
    rounds, calls = script("benchmarks/rounds"), []
    work = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    found = rounds.alternate(work, 2, warm_up=True)
    assert calls == ["a", "b"] * 3 and all(len(seconds) == 2 for seconds in found.values())
    assert rounds.spread([3.0, 1.0, 2.5]) == "2.5 | 1.0 | 3.0"
    assert rounds.timed(lambda: 5)[1] == 5


def differences(page) -> list[float]:
    """The last column of a page's table."""
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")][1:]
    return [float(row.split("|")[-2]) for row in rows]


@pytest.fixture
def localize(script, monkeypatch, tmp_path):
    module = script("benchmarks/localize")
    small = {"SHAPE": SMALL, "ROUNDS": 1, "LAYERS": (0, 1), "THEIRS": 3, "PARAGRAPHS": 4, "LOOP": 2, "PAGES": tmp_path}
    for name, value in (small | {"ANALYSED": 6, "LOOPED": 2, "PAIRS": 2, "BEFORE": 40}).items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_patching_agrees_with_transformer_lens(localize, tmp_path):
    localize.exact()
    assert len(differences(tmp_path / "localize-patching.md")) == 2
    assert max(differences(tmp_path / "localize-patching.md")) < 1e-3


def test_gradients_agree_with_a_loop_of_backward_passes(localize, tmp_path):
    localize.gradients()
    text = (tmp_path / "localize-gradients.md").read_text()
    assert float(text.split("relative to the largest gradient: ")[1].split(". ")[0]) < 1e-3


def test_attention_to_rare_tokens_agrees_with_one_paragraph_at_a_time(localize, tmp_path):
    localize.heads()
    float32, bfloat16 = differences(tmp_path / "localize-heads.md")
    assert float32 < 1e-3 and bfloat16 < 0.3


def test_random_paragraphs_are_memorized_by_the_asked_share(script, monkeypatch, tmp_path):
    module = script("benchmarks/measure")
    monkeypatch.setitem(module.SHAPE, "125m", (2, 32, 2, 97))
    model, reference = module.models("125m")
    paragraphs = module.paragraphs("125m", model, 8, 0.5)
    em = mm.score(model, paragraphs).em.values
    assert (em == 50).sum() == 4 and (em < 20).sum() == 4
    with torch.no_grad():
        logits = reference(paragraphs.tokens).logits[:, 49:99]
    said = (logits.argmax(-1) == paragraphs.continuation).int().cumprod(-1).sum(-1)
    assert said.tolist() == em.tolist(), "both models are one"
    monkeypatch.setattr(module, "PERTURBED", {"125m": 2})
    monkeypatch.setattr(module, "READ", {"125m": (2, 500)})
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "PAGES", tmp_path)
    module.perturbation()
    module.documents()
    for name in ("perturb", "documents"):
        row = next(line for line in (tmp_path / f"measure-{name}.md").read_text().splitlines() if "125m" in line)
        assert all(float(cell.replace(",", "")) > 0 for cell in row.split("|")[3 if name == "documents" else 2 : -1])


def test_a_monitors_cost_is_measured_in_pairs(script, tmp_path):
    module = script("benchmarks/detect")
    settings = module.Settings(
        rounds=2, rows=(1, 2), tokens=3, prompt=6, lengths=(2, 9), shapes=("bundled",), page=tmp_path / "page.md"
    )
    found = module.main(settings)
    assert [(row["rows"], row["action"]) for row in found] == [
        (1, "flag"), (1, "flag"), (1, "stop"), (1, "block"), (2, "flag"), (2, "flag"), (2, "block")
    ]  # fmt: skip
    assert all(row["lowest"] <= row["overhead"] <= row["highest"] and row["without"] > 0 for row in found)
    assert found[0]["state"][2] == found[0]["state"][9] > 0, "bytes, whatever was said"
    assert f"| bundled | 1 | output | flag | {found[0]['without']:.1f} |" in (tmp_path / "page.md").read_text()


def test_quick_ways_compute_what_the_plain_ones_do(script, model, tmp_path, monkeypatch):
    module = script("benchmarks/truth")
    monkeypatch.setattr(module, "SHAPES", {"tiny": (2, 16, 2)})
    monkeypatch.setattr(module, "keep_allocator", lambda: None)
    settings = module.Settings(
        rounds=1, pairs=1, candidates=100, sites=("mlp_out",), transplanted=1, batches=(2,), page=tmp_path / "page.md"
    )
    found, text = module.main(settings, model), (tmp_path / "page.md").read_text()
    one = found["training"]["tiny", 2]
    assert len(one["ratio"]) == 1 and (one["ratio"] > 0).all() and one["difference"] < 0.01
    assert f"| tiny | 2 | {one['rate']['plain']:,.0f} | {one['rate']['fused']:,.0f} |" in text
    parts = found["transplants"]
    assert parts["components"] == 6 * 3 + 2 and parts["difference"] < 1e-5
    assert f"| 20 | 1 | {parts['seconds']['plain']:.2f} |" in text
    site = found["attribution"]["mlp_out"]
    # One gradient estimates one direction; both gradients the mean of both.
    gradient, both = site["correlation"]["gradient"], site["correlation"]["both_ends"]
    assert gradient[0] > 0.5 and both[1] > max(gradient[1], 0.8), (gradient, both)
    assert f"| both_ends | {np.median(site['ratio']['both_ends']):.1f} |" in text
