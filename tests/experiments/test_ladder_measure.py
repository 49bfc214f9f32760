"""What is measured on the ladder is what the library gives for its models; comparisons are those of made profiles."""

import dataclasses
import functools
import sys
from typing import Any

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError

TINY = {"small": 40_000, "large": 50_000, "characters": 300_000, "most_copies": 2, "batch": 16}


@pytest.fixture
def trained(script, monkeypatch, tmp_path):
    """A tiny rung, trained for a few steps."""
    module = script("ladder")
    rungs: Any = sys.modules["ladder_rungs"]
    monkeypatch.setattr(rungs, "SHAPES", {"1M": (2, 16, 2)})
    monkeypatch.setattr(module, "keep_allocator", lambda: None)
    module.main(module.Settings(**TINY, only="train", work=tmp_path))
    return rungs, tmp_path, tmp_path / rungs.SMALLEST


def test_every_snapshot_is_measured_and_localized_once(script, trained, capsys):
    ladder, work, folder = trained
    module = script("ladder_measure")
    settings = module.Settings(prefix_lens=(10, 50, 100), work=work)
    module.main(settings)
    said = capsys.readouterr().out
    assert said.count("of those with no copies") == 8
    result, steps = module.measured(folder), module.steps_of(folder)
    assert result.step.values.tolist() == steps and result.prefix_len.values.tolist() == [10, 50, 100]
    documents = module.documents_of(folder)
    for step, lengths in ((steps[-1], (10, 50, 100)), (steps[3], (50,))):
        model = mm.load_model(ladder.snapshot_folder(folder, step), device="cpu")
        for length in lengths:
            tokens = documents.tokens[:, 100 - length :]
            direct = mm.score(model, mm.Paragraphs(tokens, length))
            here = result.sel(step=step, prefix_len=length)
            # Near-duplicates are measured after the one prefix length.
            rows = (documents.column("text_of") == "base") | (length == 50)
            np.testing.assert_array_equal(here.em[rows], direct.em[rows])
            np.testing.assert_allclose(here.nll[rows], direct.nll[rows], rtol=1e-5)
            assert here.em[~rows].isnull().all() and here.p_extractable[~rows].isnull().all()
    assert result.em.sel(step=steps[0], prefix_len=10).isnull().all()
    assert result.copies.values.tolist() == documents.column("copies").tolist()
    module.main(settings)
    assert not capsys.readouterr().out
    with pytest.raises(InputError, match=r"was measured with prefixes of \[10, 50, 100\] tokens, now \[20\]"):
        module.main(module.Settings(prefix_lens=(20,), work=work))
    with pytest.raises(InputError, match=r"got rung '6M-small-seed0'; finished in .*: 1M-small-seed0: train it"):
        module.main(module.Settings(rung="6M-small-seed0", work=work))

    localized(script("ladder_where"), *trained)
    paged(script("ladder_page"), work, result)
    # The one command finds all of it done, and prints the tables.
    whole = script("ladder")
    whole.keep_allocator = lambda: None
    whole.ladder_measure.Settings = functools.partial(whole.ladder_measure.Settings, prefix_lens=(10, 50, 100))
    whole.ladder_where.Settings = functools.partial(whole.ladder_where.Settings, least_copies=2, permutations=10)
    # A text this small has room for spread documents alone.
    whole.ladder_transplant.LATE = "spread"
    whole.ladder_transplant.Settings = functools.partial(whole.ladder_transplant.Settings, least_copies=2)
    capsys.readouterr()
    whole.main(whole.Settings(**TINY, work=work))
    said = capsys.readouterr().out
    assert said.startswith("1M-small-seed0: finished before\n1M-small-seed0: ") and "## Cost" in said
    transplants(script("ladder_transplant"), work, folder, said)


def paged(module, work, result):
    """The page holds the means of what was measured and names the rungs that are missing."""
    tables = module.tables
    tables.OFTEN, module.photograph = 2, lambda figure, path: path.write_text(figure.to_json())
    for name in ("ladder_law", "ladder_tables", "ladder_where_tables", "ladder_findings"):
        sys.modules[name].DRAWS = 20  # pyright: ignore[reportAttributeAccessIssue]
    module.main(module.Settings(work=work, page=work / "page.md"))
    page = (work / "page.md").read_text()
    assert "1 of 4 models are trained and measured; missing: 1M-large-seed0" in page and (work / "page.png").exists()
    rows = (result.text_of == "base").values & (result.copies == 2).values & (result.condition == "spread").values
    nll = result.nll.isel(step=-1).sel(prefix_len=50).values[rows]
    assert f"| 2 | {nll.mean():.2f} [" in page
    # What was found is said first; nothing of these few steps is whole.
    assert page.splitlines()[2].startswith(
        "- Copies that make half of the documents extractable: 1M-small >2 [>2, >2]."
    )
    effects = module.load_netcdf(work / "1M-small-seed0/where" / f"step{int(result.step[-1]):06d}.nc")
    gradients = effects.activation_gradients.sum("head").mean("paragraph").values
    assert f"| {gradients[1] / gradients.sum():.2f} [" in page.split("| 1M-small-seed0 | activation_gradients |")[1]
    with pytest.raises(InputError, match="finished in .*none"):
        module.main(module.Settings(work=work / "nothing"))


def localized(module, ladder, work, folder):
    """Memories are localized on the same documents in every model."""
    settings = module.Settings(least_copies=2, permutations=10, work=work)
    documents = sys.modules["ladder_measure"].documents_of(folder)
    clean, corrupt = module.often_and_never(documents, 2, 50)
    assert len(clean) == 40 and set(clean.column("copies").tolist()) == {2}
    assert torch.equal(clean.continuation, corrupt.continuation)
    never = documents.select((documents.column("copies") == 0) & (documents.column("text_of") == "base"))
    prefixes = {
        tuple(row): kind for row, kind in zip(never.tokens[:, 50:100].tolist(), never.column("source"), strict=True)
    }
    assert [prefixes[tuple(row)] for row in corrupt.prefix.tolist()] == clean.column("source").tolist()
    steps = sys.modules["ladder_measure"].steps_of(folder)
    module.locate_rung(dataclasses.replace(settings, every=4), folder)
    assert [step for step, _ in module.located(folder)] == [steps[3], steps[7]]
    module.locate_rung(settings, folder)
    found = module.located(folder)
    assert [step for step, _ in found] == steps
    last, result = found[-1]
    model = mm.load_model(ladder.snapshot_folder(folder, last), device="cpu")
    noising, denoising = (
        mm.patch(model, clean, corrupt, site="z", pos="all", scored="continuation", direction=direction)
        for direction in ("noising", "denoising")
    )
    np.testing.assert_allclose(result.patching.mean("paragraph"), (noising - denoising) / 2, atol=1e-5)
    assert float(result.parameter_gradients.sum()) == pytest.approx(1) == float(result.neurons.sum())
    with pytest.raises(InputError, match="prefix_len was 50, now 40"):
        module.main(module.Settings(least_copies=2, permutations=10, prefix_len=40, work=work))


def transplants(module, work, folder, said):
    """A part alone is what `transplant` makes of it, scored; the snapshot is from before the late documents."""
    result = module.transplant_rung(module.Settings(least_copies=2, work=work), folder)
    steps = module.steps_of(folder)
    assert module.before_late(steps) == steps[5] and list(result.component.values[:2]) == ["attn0", "attn1"]
    source, target = (
        mm.load_model(module.snapshot_folder(folder, step), device="cpu") for step in (steps[-1], steps[5])
    )
    late = module.often_and_never(module.documents_of(folder), 2, 50)[0]
    mixed = mm.transplant(source, target, mm.Mask.components(target, ["mlp1"], biases=True))
    direct = mm.score(mixed, late).nll.values - mm.score(target, late).nll.values
    np.testing.assert_allclose(result.nll_change.sel(component="mlp1"), direct, atol=1e-5)
    patched = mm.patch(
        source,
        *module.often_and_never(module.documents_of(folder), 2, 50),
        site="mlp_out",
        pos="all",
        direction="mean",
        scored="continuation",
    )
    np.testing.assert_allclose(result.patching.mean("paragraph")[2:], patched, atol=1e-5)
    assert f"| 1M-small-seed0 | {float((result.nll_target - result.nll_source).mean()):.2f} [" in said


def test_depth_and_agreement_are_those_of_profiles_made_by_hand(script):
    where, agreement = script("ladder_where"), script("ladder_agreement")
    rng = np.random.default_rng(0)
    late = np.tile([0.0, 0.0, 1.0, 3.0], (30, 1))
    assert where.centre_of_mass(late[0]) == pytest.approx(11 / 12)
    noisy = late + rng.uniform(0, 0.2, late.shape)
    centre, low, high = where.centre_interval(noisy, np.arange(30))
    assert centre == pytest.approx(float(where.centre_of_mass(noisy.mean(0)))) and low < centre < high < low + 0.05
    assert agreement.shared_profile(late, late) == pytest.approx(1)
    assert agreement.shared_profile(late, late[:, ::-1]) < 0.3
    # Six layers whose depths have the shares that four have.
    six = np.tile(np.interp(np.linspace(0, 1, 6), np.linspace(0, 1, 4), late[0]), (30, 1))
    assert agreement.shared_profile(late, six) > 0.85
    depth = rng.normal(size=30)
    value, low, high = agreement.document_agreement(depth, depth + 0.2 * rng.normal(size=30), np.arange(30), draws=200)
    assert low < value <= high and low > 0.5
    value, low, high = agreement.document_agreement(depth, rng.normal(size=30), np.arange(30), draws=200)
    assert low < 0 < high
