"""`mechmem patch`: an experiment by itself, which its file repeats, and which refuses before it does anything."""

import json
from typing import get_args

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import mechmem as mm
from mechmem.cli import app
from mechmem.data.netcdf import load_netcdf
from mechmem.localize import attribution, metrics, patch_effects, patch_pairs
from mechmem.model import activation_sites
from mechmem.study import patch_settings
from mechmem.study.config import apply_settings
from mechmem.study.patch_run import patch_sides
from mechmem.study.patch_settings import PatchSettings, experiment_text, parsed_layers, read_experiment

pytestmark = pytest.mark.filterwarnings("ignore:.*has no tokenizer")
QUICK = ("--pos", "perturbed", "--count", 1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A planted model's checkpoint, without a tokenizer, and the ids of its paragraphs: 8 memorized, 16 others."""
    folder = tmp_path_factory.mktemp("planted")
    truth = mm.planted()
    mm.export(truth.model, folder / "model")
    np.save(folder / "ids.npy", torch.cat([truth.memorized.tokens, truth.other.tokens]).numpy())
    return folder


@pytest.fixture(scope="module")
def folder(inputs, tmp_path_factory):
    """A study of it that is scanned and no more."""
    path = tmp_path_factory.mktemp("patch") / "study"
    settings = mm.StudySettings(model=str(inputs / "model"), corpus=str(inputs / "ids.npy"), decoded=2)
    mm.run_study(path, settings, until="scan")
    return path


@pytest.fixture(scope="module")
def pair_file(folder, tmp_path_factory):
    """A file with both rows of two pairs, in any order."""
    paragraphs = mm.open_study(folder).paragraphs
    em = paragraphs.column("em")
    rows = [*np.flatnonzero(em == 50)[:2], *np.flatnonzero(em < 10)[:2]]
    file = tmp_path_factory.mktemp("pairs") / "mine.parquet"
    labels = {"pair": ["a", "b", "b", "a"], "side": ["clean", "clean", "corrupt", "corrupt"]}
    mm.Paragraphs(paragraphs.tokens[rows], 50).with_columns(**labels).save(file)
    return file


def call(*words: object, code: int = 0) -> str:
    answer = CliRunner().invoke(app, ["patch", *map(str, words)])
    assert answer.exit_code == code, answer.output + repr(answer.exception)
    return " ".join(answer.output.split())


def result_of(folder, name) -> xr.Dataset:
    return load_netcdf(folder / "patches" / f"{name}.nc")


def test_it_writes_what_the_library_gives_and_its_file_repeats_it_elsewhere(folder, tmp_path):
    said = call("--out", folder, "--site", "v", *QUICK, "--name", "mine")
    found = result_of(folder, "mine")
    study = mm.open_study(folder)
    settings = PatchSettings(site="v", pos="perturbed", count=1)
    clean, corrupt = patch_sides(study, settings)
    expected = mm.patch_experiment(study.model, clean, corrupt, site="v", pos="perturbed")
    assert found.drop_attrs().identical(load_roundtrip(expected, tmp_path).drop_attrs())
    assert json.loads(found.attrs["settings"])["site"] == "v" and found.attrs["model"] == study.settings.model
    assert "L" in said and " to " in said and all(f"mine.{end}" in said for end in ("nc", "html", "toml"))
    assert mm.open_study(folder).results.keys() == study.results.keys(), "the study's own results are as they were"
    # Elsewhere it scans, since it must, and runs no other stage.
    new = tmp_path / "new"
    call("--out", new, "--from-file", folder / "patches" / "mine.toml")
    assert list(json.loads((new / "study.json").read_text())["timings"]) == ["scan"]
    assert result_of(new, "mine").identical(found)
    assert (new / "patches" / "mine.toml").read_text() == (folder / "patches" / "mine.toml").read_text()


def load_roundtrip(result, tmp_path):
    from mechmem.data.netcdf import save_netcdf

    save_netcdf(result, tmp_path / "r.nc")
    return load_netcdf(tmp_path / "r.nc")


def test_options_beside_a_file_replace_what_it_says(folder):
    call("--out", folder, *QUICK, "--name", "base", "--direction", "noising", "--heads", "L1H2, L3H0")
    file = folder / "patches" / "base.toml"
    assert read_experiment(file)[1]["heads"] == ["L1H2", "L3H0"]
    said = call("--out", folder, "--from-file", file, "--metric", "em", code=2)
    assert "base.toml: was begun with other settings (metric was 'nll', now 'em'); choose another name" in said
    call("--out", folder, "--from-file", file, "--metric", "em", "--name", "other")
    found = result_of(folder, "other")
    assert found.attrs["metric"] == "em" and int(np.isfinite(found.effect_mean).sum()) == 2
    before = file.read_bytes()
    call("--out", folder, "--from-file", file)
    assert file.read_bytes() == before


def test_pairs_of_a_file_need_no_scan(inputs, pair_file, tmp_path):
    said = call(
        "--out",
        tmp_path / "new",
        "--model",
        inputs / "model",
        "--pairs",
        pair_file,
        "--site",
        "resid_pre",
        "--direction",
        "noising",
    )
    assert "mine-resid_pre.nc" in said and not (tmp_path / "new" / "study.json").exists()
    found = result_of(tmp_path / "new", "mine-resid_pre")
    assert found.pair.values.tolist() == ["a", "b"] and found.effect.dims == ("direction", "paragraph", "layer", "pos")
    assert "".join(found.clean_text.values[0]) != "".join(found.corrupt_text.values[0])


def test_other_pairs_are_matched_and_differ_everywhere(folder):
    call(
        "--out", folder, "--pairs", "other", "--count", 3, "--pos", "all", "--layers", "0-1", "--scored", "continuation"
    )
    found = result_of(folder, "other-z")
    assert (found.clean_token != found.corrupt_token).mean() > 0.8
    assert len(np.unique(found.cluster)) == found.sizes["paragraph"] == 3
    assert np.isfinite(found.effect_mean.sel(layer=[0, 1])).all() and found.effect_mean.sel(layer=2).isnull().all()


def test_a_study_without_memorized_paragraphs_says_what_to_do(inputs, tmp_path):
    np.save(tmp_path / "ids.npy", np.load(inputs / "ids.npy")[8:14])
    said = call("--out", tmp_path / "s", "--model", inputs / "model", "--corpus", tmp_path / "ids.npy", code=2)
    assert (
        "the scan found no memorized paragraph (EM 50 of 50) among 6; need at least 1: scan text that the model" in said
    )
    assert "or name a file of pairs with --pairs FILE" in said and not (tmp_path / "s" / "patches").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--heads", "L12H0"], "got heads ['L12H0']; need (layer, head) pairs or names (L1H2), layer below 4"),
        (["--heads", "1,2,3"], "got the head '1'; need names such as L1H2,L3H0"),
        (["--layers", "4"], "got layers [4]; need at least one, from 0 to 3"),
        (["--layers", "3-1"], "got the layers '3-1'; need numbers from zero and ranges, such as 0-3,5"),
        (["--layers", "1", "--heads", "L1H1"], "got layers and heads; need one of them"),
        (["--site", "mlp_out", "--heads", "L1H1"], "got heads for the site 'mlp_out', which has none"),
        (["--metric", "em", "--attribute-first", "0.1"], "with the metric em, which has no gradient"),
        (
            ["--metric", "kl", "--attribute-first", "0.1", "--attribute-method", "gradient"],
            "with the metric kl, which has no gradient at the unpatched",
        ),
        (["--attribute-method", "both_ends"], "got attribute_method 'both_ends' without attribute_first"),
        (["--metric", "kl", "--direction", "mean"], "got the direction mean with the metric kl"),
        (["--pairs", "other", "--pos", "perturbed"], "which differ everywhere; need perturbed pairs, or pos each"),
        (["--pairs", "none.parquet"], "none.parquet: no such file"),
        (["--name", "../x"], "got the experiment's name '../x'; need a plain name"),
        (["--from-file", "none.toml"], "none.toml: no such file"),
        (["--site", "logits"], "logits"),
        (["--model", "nowhere/at-all"], "nowhere"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(words, said, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = [] if "--model" in words else ["--model", inputs / "model", "--corpus", inputs / "ids.npy"]
    assert said in call(*words, *known, code=2)
    assert not list(tmp_path.iterdir())


def test_pairs_that_do_not_fit_are_refused_before_anything_is_written(inputs, pair_file, tmp_path):
    model = ("--model", inputs / "model")
    good = mm.Paragraphs.load(pair_file)
    changed = {
        "unequal": (
            good.replace_tokens(torch.cat([good.tokens[:2], good.tokens[:2].flip(0)])),
            "the two paragraphs of",
        ),
        "ids": (good.replace_tokens(good.tokens + 60_000), "for a model with a vocabulary of"),
        "tokenizer": (mm.Paragraphs(good.tokens, 50, good.table, "2000-" + "0" * 8), "belong to another tokenizer"),
        "long": (good.replace_tokens(good.tokens.repeat(1, 30)), "for a model with a context of"),
        "sides": (good.with_columns(side=["clean"] * 4), "has two clean rows"),
    }
    for name, (paragraphs, said) in changed.items():
        paragraphs.save(tmp_path / f"{name}.parquet")
        answer = call("--out", tmp_path / "s", *model, "--pairs", tmp_path / f"{name}.parquet", code=2)
        assert said in answer, (name, answer)
    answer = call("--out", tmp_path / "s", *model, "--pairs", pair_file, "--pos", "perturbed", code=2)
    assert "prefix tokens that differ; need exactly 1 in every pair" in answer
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[patch]\nsites = 'z'", "x.toml: unknown setting 'sites'; did you mean site?"),
        ("[patch]\nsite = 'y'", "x.toml: got site 'y'; need one of resid_pre"),
        ("[patch]\ncount = 0", "x.toml: got 0 as count; need a whole number of at least 1"),
        ("[study]\npairs = 3", "x.toml: holds pairs in [study]; need some of model, corpus"),
        ("site = 'z'", "x.toml: holds site; need the tables [study] and [patch] alone"),
        ("[patch", "x.toml: not readable as TOML"),
    ],
)
def test_a_file_that_says_something_else_is_refused(text, said, tmp_path):
    (tmp_path / "x.toml").write_text(text)
    assert said in call("--from-file", tmp_path / "x.toml", "--out", tmp_path / "s", code=2)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "settings",
    [
        PatchSettings(),
        PatchSettings(site="q", layers=(0, 2), pairs='a "b" 😀\\ü', attribute_first=0.03, count=7, normalize=True),
        PatchSettings(heads=("L1H2",), pos="all", direction="noising", metric="em", scored="continuation"),
        PatchSettings(direction="mean", attribute_first=0.1, attribute_method="both_ends"),
    ],
)
def test_settings_come_back_from_their_file(settings, tmp_path):
    study = mm.StudySettings(model="a/b", corpus="dir/ä.txt", seed=3, prefix_len=32)
    (tmp_path / "x.toml").write_text(experiment_text(settings, study), encoding="utf-8")
    of_study, of_patch = read_experiment(tmp_path / "x.toml")
    assert of_study == {"model": "a/b", "corpus": "dir/ä.txt", "seed": 3, "prefix_len": 32}
    assert apply_settings(PatchSettings(), of_patch) == settings


def test_choices_are_the_library_s():
    assert set(get_args(patch_settings.Site)) == set(get_args(activation_sites.Site))
    assert set(get_args(patch_settings.Where)) == set(get_args(patch_effects.Positions))
    assert set(get_args(patch_settings.Metric)) == set(get_args(metrics.MetricName))
    assert set(get_args(patch_settings.Attribution)) == set(get_args(attribution.Method))
    assert set(get_args(patch_settings.Directions)) == {*get_args(patch_pairs.Direction), "both"}


def test_layers_are_numbers_and_ranges():
    assert parsed_layers("0-3, 5,2") == (0, 1, 2, 3, 5)
