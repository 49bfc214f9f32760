import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

import mechmem.study.runner as study_module
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.study.runner import STAGES, run_study
from mechmem.study.settings import Settings

SMALL = Settings(limit=400, gradient_sample=8, ablation_sample=4, pairs=3, targets=4, evaluated=10, steps=3)
NUMBERS = ("gradients.nc", "heads.nc", "rare.nc", "attention.nc", "patching.nc", "unlearn.nc", "attacks.nc")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "whole"
    calls: list[tuple[str, int, int]] = []
    manifest = run_study(folder, SMALL, progress=lambda *call: calls.append(call))
    return folder, manifest, calls


def test_a_study_writes_what_the_design_says(finished):
    folder, manifest, calls = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {"study.json", "paragraphs.parquet", "edited", "report.html", *NUMBERS}
    assert json.loads((folder / "study.json").read_text()) == manifest
    assert set(manifest["timings"]) == {stage.name for stage in STAGES} and manifest["finished"]
    assert {what for what, _, _ in calls} == {stage.says for stage in STAGES}
    assert all(0 <= done <= total for _, done, total in calls)


def test_sets_follow_from_em_and_every_set_is_there(finished):
    table = Paragraphs.load(finished[0] / "paragraphs.parquet")
    em, label = table.column("em"), table.column("set")
    assert (label == np.where(em == 50, "memorized", np.where(em <= 10, "other", "between"))).all()
    assert (label == "memorized").sum() > 10 < (label == "other").sum()


def test_unlearning_is_judged_on_sets_that_share_no_cluster(finished):
    result = xr.load_dataset(finished[0] / "unlearn.nc", engine="h5netcdf")
    assert result["mask"].values.tolist() == ["before", "top 0.1 %", "random 0.1 %", "all weights"]
    assert set(result["set"].values.tolist()) >= {"targeted memorized", "held-out memorized", "other"}
    changed = dict(zip(result["mask"].values.tolist(), result.weights_changed.values.tolist(), strict=True))
    selected = result.attrs["weights_selected"]
    assert changed["before"] == 0 and selected == round(0.001 * result.attrs["weights_total"])
    assert 0.9 * selected < changed["top 0.1 %"] <= selected >= changed["random 0.1 %"]
    assert changed["all weights"] > 100 * selected
    assert float(result.selected_share.sum()) == pytest.approx(1.0)
    assert float(result.em_mean.sel(mask="before", set="targeted memorized")) == 50.0


def test_the_edited_checkpoint_is_the_top_edit(finished):
    import mechmem as mm

    folder, _, _ = finished
    original, edited = mm.load_model("bundled"), mm.load_model(str(folder / "edited"))
    result = xr.load_dataset(folder / "unlearn.nc", engine="h5netcdf")
    assert study_changed(original, edited) == int(result.weights_changed.sel(mask="top 0.1 %"))


def study_changed(before, after) -> int:
    from mechmem.weights.support import changed_weights

    return changed_weights(before, after)


def test_the_same_call_again_does_nothing(finished):
    folder, _, _ = finished
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    run_study(folder, SMALL)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def same_numbers(one, two) -> bool:
    return all(
        xr.load_dataset(one / name, engine="h5netcdf").identical(xr.load_dataset(two / name, engine="h5netcdf"))
        for name in NUMBERS
    )


@pytest.mark.parametrize("stage", ["gradients", "attention", "unlearn"])
def test_a_study_cut_off_in_any_stage_ends_with_the_same_numbers(finished, tmp_path, monkeypatch, stage):
    folder = tmp_path / "cut"
    shutil.copytree(finished[0], folder)
    keep = [s.file for s in STAGES[: [s.name for s in STAGES].index(stage)]]
    for path in folder.iterdir():
        if path.suffix in {".nc", ".html"} and path.name not in [
            *keep,
            *(["attention.nc"] if "rare.nc" in keep else []),
        ]:
            path.unlink()

    def cut(run):
        next(s for s in STAGES if s.name == stage).work(run)
        raise KeyboardInterrupt

    stages = tuple(replace(s, work=cut) if s.name == stage else s for s in STAGES)
    for path in folder.glob("*.nc"):
        assert path.name in keep or path.name == "attention.nc"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(study_module, "STAGES", stages)
        run_study(folder, SMALL)
    run_study(folder, SMALL)
    assert same_numbers(finished[0], folder) and (folder / "report.html").exists()


def test_a_killed_process_leaves_whole_files_only_and_goes_on(finished, tmp_path):
    folder = tmp_path / "killed"
    code = f"""if True:
        from mechmem.study.settings import Settings
        from mechmem.study.runner import run_study
        run_study({str(folder)!r}, {SMALL!r})"""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    deadline = time.monotonic() + 120
    while not (folder / "gradients.nc").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stamp = (folder / "gradients.nc").stat().st_mtime_ns
    assert not (folder / "report.html").exists()
    run_study(folder, SMALL)
    assert (folder / "gradients.nc").stat().st_mtime_ns == stamp
    assert same_numbers(finished[0], folder)


def test_what_a_killed_writer_left_is_swept_and_does_not_block(tmp_path):
    folder = tmp_path / "s"
    (folder / ".edited.1234.partial").mkdir(parents=True)
    (folder / ".study.5678.partial.json").write_text("{")
    run_study(folder, replace(SMALL, limit=20), until="scan")
    assert {path.name for path in folder.iterdir()} == {"study.json", "paragraphs.parquet"}


def test_another_study_is_not_mixed_in(finished, tmp_path):
    with pytest.raises(InputError, match="other settings .seed was 0, now 5.; choose another folder"):
        run_study(finished[0], replace(SMALL, seed=5))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no study.json"):
        run_study(tmp_path, SMALL)
    with pytest.raises(InputError, match="there is no stage 'scann'; the stages are scan, gradients"):
        run_study(tmp_path / "new", SMALL, until="scann")


def test_a_corpus_folder_whose_content_changed_is_noticed(tmp_path):
    from mechmem.data.assets import bundled_paragraphs

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    texts = bundled_paragraphs()[:30].column("text")
    for number in range(2):
        (corpus / f"{number}.txt").write_text("\n".join(texts[15 * number :][:15]))
    settings = replace(SMALL, corpus=str(corpus))
    run_study(tmp_path / "s", settings, until="scan")
    run_study(tmp_path / "s", settings, until="scan")
    (corpus / "1.txt").write_text("\n".join(texts[10:]))
    with pytest.raises(InputError, match="was begun with another content"):
        run_study(tmp_path / "s", settings, until="scan")


def test_another_model_needs_a_corpus_of_its_own(tmp_path):
    from mechmem.data.assets import MODEL_FOLDER

    with pytest.raises(InputError, match="no corpus came for .*bundled; .* with --corpus FILE"):
        run_study(tmp_path / "s", replace(SMALL, model=str(MODEL_FOLDER)))


def test_a_corpus_that_was_not_memorized_still_gives_a_report(tmp_path):
    import torch

    from mechmem.data.assets import MODEL_FOLDER

    tokens = torch.randint(1, 4096, (6, 100), generator=torch.Generator().manual_seed(0))
    Paragraphs(tokens, 50).save(tmp_path / "random.parquet")
    settings = replace(SMALL, model=str(MODEL_FOLDER), corpus=str(tmp_path / "random.parquet"))
    run_study(tmp_path / "s", settings)
    assert "report.html" in {path.name for path in (tmp_path / "s").iterdir()}
    assert not (tmp_path / "s" / "unlearn.nc").exists()


def test_another_family_without_a_tokenizer_goes_through_every_stage_but_export(tmp_path):
    """A random Pythia is made to have memorized: some paragraphs are its own greedy continuations."""
    import torch
    import transformers

    config = transformers.GPTNeoXConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    reference: Any = transformers.GPTNeoXForCausalLM(config).eval()
    reference.save_pretrained(tmp_path / "model")
    prefix = torch.randint(0, 128, (8, 50))
    own = reference.generate(
        prefix, attention_mask=torch.ones_like(prefix), max_new_tokens=50, do_sample=False, pad_token_id=0
    )
    np.save(tmp_path / "ids.npy", torch.cat([own, torch.randint(0, 128, (30, 100))]).numpy())
    settings = replace(SMALL, model=str(tmp_path / "model"), corpus=str(tmp_path / "ids.npy"), limit=None)
    with pytest.warns(UserWarning, match="tokenizer"):
        run_study(tmp_path / "s", settings)
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {"study.json", "paragraphs.parquet", "report.html", *NUMBERS}
    result = xr.load_dataset(tmp_path / "s" / "unlearn.nc", engine="h5netcdf")
    assert float(result.em_mean.sel(mask="before", set="targeted memorized")) == 50.0
