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

import mechmem.study.runner as runner_module
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.study.folder import StudyFolder, open_study
from mechmem.study.manifest import settings_of
from mechmem.study.plan import NAMES, STAGES, required
from mechmem.study.runner import run_study
from mechmem.study.settings import StudySettings
from mechmem.study.stage_progress import StageNews
from mechmem.study.stages import rows_to_decode
from mechmem.weights.support import changed_weights

NUMBERS = ("gradients.nc", "heads.nc", "rare.nc", "attention.nc", "patching.nc", "unlearn.nc", "attacks.nc")
TITLES = ["original", "NPO, all weights", "NPO, top 0.1 %", "NPO, random 0.1 %"]
SMALL = StudySettings(
    limit=200, decoded=8, gradient_sample=4, ablation_sample=2, pairs=2, targets=3, evaluated=6, steps=4,
    attack_prefixes=2, relearning_steps=1, edits=("npo all", "npo top", "npo random"),
)  # fmt: skip


def test_a_study_writes_what_the_design_says(small_study):
    folder = small_study.folder
    names = {path.name for path in folder.iterdir()}
    assert names == {"study.json", "paragraphs.parquet", "edited", "edits", "report.html", "SHA256SUMS", *NUMBERS}
    manifest = json.loads((folder / "study.json").read_text())
    assert settings_of(folder) == SMALL
    assert list(manifest["timings"]) == list(NAMES) == list(manifest["findings"]) and manifest["finished"]
    assert all(spent["cpu_seconds"] > 0 and spent["peak_mb"] > 100 for spent in manifest["timings"].values())


def test_sets_follow_from_em_and_every_set_is_there(small_study):
    table = Paragraphs.load(small_study.folder / "paragraphs.parquet")
    em, label = table.column("em"), table.column("set")
    assert (label == np.where(em == 50, "memorized", np.where(em <= 10, "other", "between"))).all()
    assert (label == "memorized").sum() > 10 < (label == "other").sum()
    distance, said = table.column("edit_distance"), table.column("greedy_text")
    # Memorized text is its own greedy continuation; of the rest eight are decoded.
    assert (distance[em == 50] == 0).all() and np.isfinite(distance[em < 50]).sum() == 8
    assert (said[em == 50] == table.column("continuation_text")[em == 50]).all()
    assert ((said == "") == np.isnan(distance)).all()


def test_near_misses_are_decoded_first_and_then_a_sample():
    em = np.array([50, 3, 49, 0, 20, 48, 1, 50, 2])
    rows = rows_to_decode(em, 50, 4, seed=0).tolist()
    assert {2, 5} <= set(rows) and len(rows) == 4 and not {0, 7} & set(rows)
    assert rows_to_decode(em, 50, None, seed=0).tolist() == np.flatnonzero(em < 50).tolist()


def test_unlearning_is_evaluated_on_sets_that_share_no_cluster(small_study):
    result = open_study(small_study.folder).results["unlearn"]
    assert result["edit"].values.tolist() == TITLES
    assert set(result["set"].values.tolist()) >= {"targets", "held-out memorized", "other"}
    changed = dict(zip(TITLES, result.weights_changed.values.tolist(), strict=True))
    selected = result.attrs["weights_selected"]
    assert changed["original"] == 0 and selected == round(0.001 * result.attrs["weights_total"])
    assert 0.9 * selected < changed["NPO, top 0.1 %"] <= selected >= changed["NPO, random 0.1 %"]
    assert changed["NPO, all weights"] > 100 * selected
    assert float(result.selected_share.sum()) == pytest.approx(1.0)
    assert float(result.em.sel(edit="original", set="targets")) == 50.0
    assert (result.kl.sel(edit="original") == 0).all() and (result.em_change.sel(edit="original") == 0).all()
    change = result.em - result.em.sel(edit="original")
    xr.testing.assert_allclose(change, result.em_change.rename("em"))


def test_the_edited_checkpoint_is_the_first_edit(small_study):
    import mechmem as mm

    study = open_study(small_study.folder)
    edited = mm.load_model(str(small_study.folder / "edited"))
    assert changed_weights(study.edits["npo-all"].apply(study.model), edited) == 0
    assert changed_weights(study.model, edited) > 0


def test_an_opened_study_holds_results_paragraphs_and_edits_by_name(small_study):
    study = open_study(small_study.folder)
    assert list(study.results) == sorted(name.removesuffix(".nc") for name in NUMBERS)
    assert sorted(study.edits) == ["npo-all", "npo-random", "npo-top"]
    edit = study.edits["npo-top"]
    assert edit.mask is not None and edit.mask.count == 4719 and study.edits["npo-all"].mask is None
    assert edit.costs is not None and edit.attacks is not None and study.edits["npo-random"].attacks is None
    assert len(edit.targets) == 3 and edit.history.sizes["step"] <= 4
    assert len(study.paragraphs) == 200 and len(repr(study)) < 400 and len(repr(edit)) < 120
    with pytest.raises(KeyError, match="the study has attacks, attention"):
        study.results["nothing"]
    with pytest.raises(InputError, match="holds no study"):
        open_study(small_study.folder / "edits")


def test_the_same_call_again_does_nothing(small_study):
    before = {path.name: path.stat().st_mtime_ns for path in small_study.folder.iterdir()}
    run_study(small_study.folder)
    assert {path.name: path.stat().st_mtime_ns for path in small_study.folder.iterdir()} == before


def same_numbers(one, two) -> bool:
    return all(
        xr.load_dataset(one / name, engine="h5netcdf").identical(xr.load_dataset(two / name, engine="h5netcdf"))
        for name in NUMBERS
    )


@pytest.mark.parametrize("stage", ["attention", "unlearn"])
def test_a_study_cut_off_in_any_stage_ends_with_the_same_numbers(small_study, tmp_path, monkeypatch, stage):
    folder = tmp_path / "cut"
    shutil.copytree(small_study.folder, folder)
    later = [s.file for s in STAGES[NAMES.index(stage) :]]
    for name in later:
        (folder / name).unlink()
    if stage == "unlearn":
        # One edit is finished and not evaluated, the others are not begun.
        for name in ("npo-top", "npo-random"):
            shutil.rmtree(folder / "edits" / name)
        (folder / "edits" / "npo-all" / "costs.nc").unlink()
        (folder / "edits" / "npo-all" / "attacks.nc").unlink()

    def cut(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setitem(runner_module.WORK, stage, cut)
        run_study(folder, SMALL)
    assert not any((folder / name).exists() for name in later)
    run_study(folder, SMALL)
    assert same_numbers(small_study.folder, folder) and (folder / "report.html").exists()


def test_a_killed_process_leaves_whole_files_only_and_goes_on(small_study, tmp_path):
    folder = tmp_path / "killed"
    code = f"""if True:
        from mechmem.study.settings import StudySettings
        from mechmem.study.runner import run_study
        run_study({str(folder)!r}, {SMALL!r}, until="gradients")
        run_study({str(folder)!r}, until="heads")"""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    deadline = time.monotonic() + 200
    while not (folder / "gradients.nc").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stamp = (folder / "gradients.nc").stat().st_mtime_ns
    run_study(folder, SMALL, until="heads")
    assert (folder / "gradients.nc").stat().st_mtime_ns == stamp
    for name in ("gradients.nc", "heads.nc"):
        one, two = (xr.load_dataset(f / name, engine="h5netcdf") for f in (small_study.folder, folder))
        assert one.identical(two)


def test_what_a_killed_writer_left_is_swept_and_does_not_block(tmp_path):
    folder = tmp_path / "s"
    (folder / ".mechmem-fedcba9876543210fedcba9876543210.partial").mkdir(parents=True)
    (folder / ".mechmem-0123456789abcdef0123456789abcdef.partial.json").write_text("{")
    run_study(folder, replace(SMALL, limit=20), until="scan")
    assert {path.name for path in folder.iterdir()} == {"study.json", "paragraphs.parquet", "SHA256SUMS"}


def test_another_study_is_not_mixed_in(small_study, tmp_path):
    with pytest.raises(InputError, match="other settings .seed was 0, now 5.; choose another folder"):
        run_study(small_study.folder, replace(SMALL, seed=5))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no study.json"):
        run_study(tmp_path, SMALL)
    with pytest.raises(InputError, match="until is 'scann'; need one of the stages scan, gradients"):
        run_study(tmp_path / "new", SMALL, until="scann")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "study.json").write_text('{"settings": {}, "versions": {"mechmem": "0.0.9"}}')
    with pytest.raises(InputError, match="written by mechmem 0.0.9; need format 2: run the study again"):
        open_study(tmp_path / "old")


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

    with pytest.raises(InputError, match="got no corpus for .*bundled; .* with --corpus FILE"):
        run_study(tmp_path / "s", replace(SMALL, model=str(MODEL_FOLDER)))


def test_a_corpus_that_was_not_memorized_still_gives_a_report_and_says_what_is_left_out(tmp_path):
    import torch

    from mechmem.data.assets import MODEL_FOLDER

    tokens = torch.randint(1, 4096, (6, 100), generator=torch.Generator().manual_seed(0))
    Paragraphs(tokens, 50).save(tmp_path / "random.parquet")
    settings = replace(SMALL, model=str(MODEL_FOLDER), corpus=str(tmp_path / "random.parquet"))
    news: list[StageNews] = []
    manifest = run_study(tmp_path / "s", settings, watch=news.append)
    assert "report.html" in {path.name for path in (tmp_path / "s").iterdir()}
    assert not (tmp_path / "s" / "unlearn.nc").exists()
    assert set(manifest["skipped"]) == {"gradients", "heads", "attention", "patch", "unlearn", "attack"}
    assert any((one.finding or "").startswith("left out: the corpus has fewer than two clusters") for one in news)


def test_another_family_without_a_tokenizer_goes_through_every_stage(tmp_path):
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
    news: list[StageNews] = []
    with pytest.warns(UserWarning, match="tokenizer"):
        manifest = run_study(tmp_path / "s", settings, watch=news.append)
    assert manifest["skipped"] == {}
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {"study.json", "paragraphs.parquet", "edits", "edited", "report.html", "SHA256SUMS", *NUMBERS}
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "s/edited").config.model_type == "gpt_neox"
    result = xr.load_dataset(tmp_path / "s" / "unlearn.nc", engine="h5netcdf")
    assert float(result.em.sel(edit="original", set="targets")) == 50.0


def test_news_has_one_total_a_stage_grows_and_ends_with_the_whole(tmp_path):
    news: list[StageNews] = []
    run_study(tmp_path / "s", replace(SMALL, limit=60), until="heads", watch=news.append)
    assert [one.stage for one in news if one.finding is not None] == ["scan", "heads"]
    assert {(one.number, one.of, one.stage) for one in news} == {(1, 8, "scan"), (3, 8, "heads")}
    for stage in ("scan", "heads"):
        shares = [one.share for one in news if one.stage == stage]
        assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares) and len(set(shares)) > 3
    whole = [one.whole for one in news]
    assert whole == sorted(whole) and whole[0] == 0 and whole[-1] == 1
    found = next(one.finding for one in news if one.stage == "scan" and one.finding)
    paragraphs = Paragraphs.load(tmp_path / "s" / "paragraphs.parquet")
    assert found == f"{(paragraphs.column('em') == 50).sum()} of 60 paragraphs reproduced exactly"


def test_progress_is_called_with_done_and_total_of_the_whole_run(tmp_path):
    calls: list[tuple[int, int]] = []
    run_study(tmp_path / "s", replace(SMALL, limit=30), until="scan", progress=lambda *call: calls.append(call))
    assert {total for _, total in calls} == {1000} and calls[0][0] == 0 and calls[-1][0] == 1000


def test_a_stage_needs_only_the_stages_whose_files_it_reads():
    assert [stage.name for stage in required("patch")] == ["scan", "patch"]
    assert [stage.name for stage in required("attention")] == ["scan", "heads", "attention"]
    assert [stage.name for stage in required("report")] == list(NAMES)


def test_the_folder_s_settings_are_taken_where_none_are_given(small_study):
    assert (
        run_study(small_study.folder)["settings"]
        == json.loads((small_study.folder / "study.json").read_text())["settings"]
    )
    assert StudyFolder(small_study.folder, SMALL).comparable
