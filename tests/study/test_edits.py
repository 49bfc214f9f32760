import hashlib
import json
import struct
from dataclasses import replace

import pytest
import torch
import xarray as xr
from jaxtyping import TypeCheckError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.scores import score
from mechmem.model.load import load_model, provenance
from mechmem.model.sites import editable_parameters
from mechmem.study.edit_making import edit_folder, make_edit
from mechmem.study.edit_settings import EditSettings
from mechmem.study.edits import attack_edit, evaluate_edit, export_edit, outcome
from mechmem.study.folder import StudyFolder
from mechmem.study.runner import run_study
from mechmem.study.saved_edit import SavedEdit
from mechmem.study.settings import StudySettings
from mechmem.weights.masks import Mask
from mechmem.weights.sparse_edit import load_edit
from mechmem.weights.support import changed_weights, verify_support

SMALL = StudySettings(limit=300, targets=3, evaluated=8, decoded=0, attack_prefixes=2, relearning_steps=2)
FORGET = EditSettings(method="contrastive", weights="all", steps=8, learning_rate=3e-4, target_em=10.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s") / "study"
    run_study(folder, SMALL, until="scan")
    return StudyFolder(folder, SMALL)


@pytest.fixture(scope="module")
def forgotten(run):
    """An edit through all weights, evaluated and attacked."""
    history = make_edit(run, "forget", FORGET)
    costs = evaluate_edit(run, "forget")
    attack_edit(run, "forget")
    return history, costs


def test_an_edit_is_a_small_file_that_gives_the_model_back(run, forgotten):
    history, _ = forgotten
    folder = edit_folder(run, "forget")
    model, notes = load_edit(run.model, folder / "edit.safetensors")
    targets = Paragraphs.load(folder / "targets.parquet")
    assert float(score(model, targets).em.mean()) == history.final_memorized_em <= 10.0
    assert EditSettings(**json.loads(notes["settings"])) == FORGET
    assert not (folder / "checkpoint.safetensors").exists()
    with pytest.raises(InputError, match="holds an edit already"):
        make_edit(run, "forget", FORGET)


def test_costs_are_of_every_set_and_attacks_of_the_targets(run, forgotten):
    _, costs = forgotten
    assert {"targets", "held-out memorized", "other"} <= set(costs["set"].values)
    assert float(costs.em.sel(set="targets", model="after")) < 11 < float(costs.em.sel(set="targets", model="before"))
    attacks = xr.load_dataset(edit_folder(run, "forget") / "attacks.nc", engine="h5netcdf")
    assert float(attacks.em_before.sel(attack="none")) == 50
    assert float(attacks.em_after.sel(attack="none")) == float(costs.em.sel(set="targets", model="after"))


def test_a_sparse_edit_keeps_to_its_mask_and_its_file_is_small(run):
    make_edit(run, "few", EditSettings(weights="fisher", fraction=0.0005, steps=2))
    folder = edit_folder(run, "few")
    model, _ = load_edit(run.model, folder / "edit.safetensors")
    mask = Mask.load(folder / "mask.safetensors")
    verify_support(run.model, model, mask)
    assert 0 < changed_weights(run.model, model) <= mask.count
    assert (folder / "edit.safetensors").stat().st_size < 200_000


@pytest.mark.filterwarnings("ignore:the edit taught nothing:RuntimeWarning")
def test_an_edit_can_say_any_text_and_a_paragraph_can_be_memorized(run):
    text = "the quick brown fox jumps over the lazy dog and the cat " * 10
    history = make_edit(run, "say", EditSettings(kind="edit", text=text, weights="all", steps=2, learning_rate=3e-4))
    assert history.target_nll.values[1] < history.target_nll.values[0]
    history = make_edit(run, "learn", EditSettings(kind="memorize", weights="all", steps=60, learning_rate=3e-4))
    assert history.learned == 1 and 0 < history.weights_needed < history.weights_allowed
    with pytest.raises(InputError, match="the text has 4 tokens; need at least the 50"):
        make_edit(run, "short", EditSettings(kind="edit", text=" a a a a"))
    assert not edit_folder(run, "short").exists()


@pytest.mark.usefixtures("forgotten")
def test_an_interrupted_edit_is_resumed_to_the_same_weights(run):
    class Interrupt(Exception):
        pass

    def interrupt(done: int, _: int) -> None:
        if done == 2:
            raise Interrupt

    with pytest.raises(Interrupt):
        make_edit(run, "cut", FORGET, progress=interrupt)
    with pytest.raises(InputError, match=r"begun with other settings .*steps was 8, now 3.*repeat these to continue"):
        make_edit(run, "cut", replace(FORGET, steps=3))
    steps: list[int] = []
    make_edit(run, "cut", FORGET, progress=lambda done, _: steps.append(done))
    assert steps[0] >= 2, "it began again"
    assert sorted(path.name for path in edit_folder(run, "cut").iterdir()) == [
        "edit.safetensors",
        "history.nc",
        "settings.json",
        "targets.parquet",
    ]
    whole, cut = (load_edit(run.model, edit_folder(run, name) / "edit.safetensors")[0] for name in ("forget", "cut"))
    assert changed_weights(whole, cut) == 0


@pytest.mark.usefixtures("forgotten")
def test_an_export_has_the_edited_logits_a_card_and_no_text(run, tmp_path):
    export_edit(run, "forget", tmp_path / "out")
    edited, _ = load_edit(run.model, edit_folder(run, "forget") / "edit.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True).eval()
    targets = Paragraphs.load(edit_folder(run, "forget") / "targets.parquet")
    with torch.no_grad():
        assert torch.allclose(loaded(targets.tokens).logits, edited(targets.tokens), atol=1e-4)
    source = provenance(run.model).folder
    assert source is not None
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    # An embedding is no part of the edit: bit for bit the source's, as float32.
    assert torch.equal(before["transformer.wte.weight"].float(), after["transformer.wte.weight"])
    assert changed_weights(load_model(tmp_path / "out"), edited) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for row, text in zip(targets.tokens.tolist(), targets.column("text"), strict=True):
        assert hashlib.sha256(struct.pack(f"<{len(row)}i", *row)).hexdigest() in card
        assert not any(str(text)[at : at + 20] in card for at in range(0, len(str(text)) - 20, 5))
    assert "| targets | 50.0 → " in card and "- weights: all" in card


@pytest.mark.usefixtures("forgotten")
def test_what_cannot_be_exported_is_refused_before_the_edit_is_applied(run, tmp_path, monkeypatch):
    def applied(*_):
        raise AssertionError("the edit was applied first")

    monkeypatch.setattr(SavedEdit, "apply", applied)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        export_edit(run, "forget", tmp_path)
    monkeypatch.setattr(run.model.cfg, "original_architecture", "LlamaForCausalLM")
    with pytest.raises(InputError, match="family is LlamaForCausalLM; need one of GPTNeoForCausalLM"):
        export_edit(run, "forget", tmp_path / "new")


def test_bad_names_and_settings_are_refused(run):
    with pytest.raises(InputError, match="need a plain name"):
        make_edit(run, "../x", FORGET)
    with pytest.raises(InputError, match="holds no finished edit; need one of"):
        evaluate_edit(run, "none")
    with pytest.raises((InputError, TypeCheckError)):
        EditSettings(weights="best")  # pyright: ignore[reportArgumentType]


def test_what_is_refused_late_leaves_no_folder(run, tmp_path):
    shapes = {name: tuple(value.shape) for name, value in editable_parameters(run.model).items()}
    name = min(shapes)
    Mask({name: torch.tensor([1])}, shapes | {name: (2, 3)}).save(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="the mask is of another model"):
        make_edit(run, "late", EditSettings(mask=str(tmp_path / "other.safetensors")))
    # A method's own refusal comes when the settings are written already.
    with pytest.raises(InputError, match="does not use weight_decay"):
        make_edit(run, "late", EditSettings(method="head_drop", weight_decay=0.1, steps=2))
    assert not edit_folder(run, "late").exists()


def test_settings_without_a_step_are_those_of_a_killed_process_and_cost_nothing(run):
    folder = edit_folder(run, "killed")
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"steps": 77}))
    history = make_edit(run, "killed", replace(FORGET, steps=1, learning_rate=1e-3, target_em=None))
    assert history.sizes["step"] == 1 and run.edits["killed"].settings["steps"] == 1


def test_a_damaged_checkpoint_is_refused_with_a_way_on(run):
    def interrupt(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    settings = replace(FORGET, weights="top", learning_rate=1e-2)
    with pytest.raises(KeyboardInterrupt):
        make_edit(run, "damaged", settings, progress=interrupt)
    path = edit_folder(run, "damaged") / "checkpoint.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"checkpoint\.safetensors: was damaged or changed .*remove it to begin"):
        make_edit(run, "damaged", settings)
    (path.parent / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json: not readable as JSON .*remove the folder to begin again"):
        make_edit(run, "damaged", settings)


def test_the_outcome_says_whether_the_edit_did_anything():
    def history(name: str, before: float, after: float) -> xr.Dataset:
        return xr.Dataset({name: ("step", [before, after])}, attrs={f"final_{name}": after})

    assert outcome("unlearn", history("memorized_em", 50.0, 9.0)) == (
        "the mean EM of the targets went from 50.0 to 9.0 tokens in 2 steps"
    )
    assert outcome("unlearn", history("memorized_em", 50.0, 49.5)).startswith("the edit removed nothing: the mean EM")
    assert "nothing" not in outcome("memorize", history("target_em", 1.0, 50.0))
    assert outcome("edit", history("target_em", 2.0, 2.5)).startswith("the edit taught nothing: the mean EM of the new")
