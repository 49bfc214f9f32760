"""A detector survives its folder, refuses damage and other models, and bounds what it says."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.detect.detector import Detector
from mechmem.detect.detector_settings import DetectorSettings
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.identity import identity_of, model_identity
from mechmem.detect.probes.fit import fit_detector
from tests.detect.example_features import DEEP, IDENTITY, OUTPUT, TREES, made_up

QUICK: dict[str, Any] = {"trees": 6, "tree_depth": 2, "folds": 2}


@pytest.fixture(scope="module", params=["logistic", "boosting", "isotonic"])
def detector(request) -> Detector:
    settings = DetectorSettings(**QUICK, calibration="isotonic" if request.param == "isotonic" else "platt")
    candidate = TREES if request.param == "boosting" else DEEP[2]
    found = fit_detector(made_up(120, told_by_output=1.0), [candidate], identity=IDENTITY, settings=settings)
    return dataclasses.replace(found, trained_on=np.array([-5, 3, 2**62]))


def test_what_is_loaded_is_what_was_saved(detector, tmp_path):
    detector.save(tmp_path / "detector")
    assert sorted(path.name for path in (tmp_path / "detector").iterdir()) == ["detector.json", "detector.safetensors"]
    again = Detector.load(tmp_path / "detector")
    features = torch.randn(9, len(detector.names), generator=torch.Generator().manual_seed(0))
    for k in (0, 3, 60):
        assert torch.equal(again.score(features, k), detector.score(features, k))
    for name in ("choice", "names", "buckets", "rule", "generation_len", "identity", "settings", "notes"):
        assert getattr(again, name) == getattr(detector, name), name
    assert np.array_equal(again.null, detector.null) and np.array_equal(again.trained_on, detector.trained_on)
    assert repr(again) == repr(detector) and "threshold from" in repr(again)


def test_saving_replaces_a_detector_and_nothing_else(detector, tmp_path):
    for _ in range(2):
        detector.save(tmp_path / "detector")
    (tmp_path / "detector" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files of something else \(notes.txt\); need a folder of its own"):
        detector.save(tmp_path / "detector")
    assert (tmp_path / "detector" / "notes.txt").read_text() == "mine"


def test_a_missing_or_foreign_folder_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="holds no detector.json; need a folder that Detector.save wrote"):
        Detector.load(tmp_path / "nothing")


def edited(folder: Path, **changes: object) -> None:
    about = json.loads((folder / "detector.json").read_text())
    (folder / "detector.json").write_text(json.dumps(about | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 9}, "is a detector of format 9, this version reads 1"),
        ({"method": "pickle"}, "method is 'pickle'; need one of logistic, boosting"),
        ({"rule": "sum"}, "rule is 'sum'"),
        ({"names": ["a", "a"]}, "must be different names of columns"),
        ({"names": ["a", "b"]}, "its columns are not those that this version reads"),
        ({"buckets": [1, 2]}, "buckets must rise from 0"),
        ({"buckets": [0, 4]}, "of shape"),
        ({"generation_len": 0}, "generation_len be at least 1"),
        ({"choice": {"groups": ["screen"]}}, "names the groups"),
        ({"choice": {"groups": ["residual"], "depths": [-1]}}, "by numbers from 0"),
        ({"choice": {"pages": []}}, "is damaged or was changed"),
        (
            {
                "identity": dataclasses.asdict(IDENTITY) | {"d_model": 10**12},
                "choice": {"groups": ["residual"], "depths": [0]},
            },
            "columns",
        ),
        ({"identity": {}}, "is damaged or was changed"),
        ({"settings": {"folds": 1}}, "as folds; need"),
        ({"notes": 3}, "'notes' is a int"),
        ({"sha256": "0"}, "was damaged or changed after it was written"),
    ],
)
def test_json_that_was_changed_is_a_sentence(tmp_path, changes, said):
    found = fit_detector(made_up(120), [OUTPUT], identity=IDENTITY, settings=DetectorSettings(**QUICK))
    found.save(tmp_path / "detector")
    edited(tmp_path / "detector", **changes)
    with pytest.raises(InputError, match=said):
        Detector.load(tmp_path / "detector")


def test_numbers_that_were_changed_are_refused_even_with_their_checksum(detector, tmp_path):
    import hashlib

    detector.save(tmp_path)
    original = load_file(tmp_path / "detector.safetensors")
    for name, tensor in original.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        damaged = {key: value.clone() for key, value in original.items()}
        damaged[name].view(-1)[0] = torch.nan
        save_file(damaged, tmp_path / "detector.safetensors")
        edited(tmp_path, sha256=hashlib.sha256((tmp_path / "detector.safetensors").read_bytes()).hexdigest())
        with pytest.raises(InputError, match="is damaged or was changed.*train the detector again"):
            Detector.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "said"), [("left", 10**9, "beyond 0"), ("left", 0, "circle"), ("feature", -1, "beyond")]
)
def test_trees_that_are_none_are_refused(name, value, said):
    from mechmem.detect.probes.boosting import TreeProbes

    found = fit_detector(made_up(120), [TREES], identity=IDENTITY, settings=DetectorSettings(**QUICK)).probes
    tensors = {key: tensor.clone() for key, tensor in found.tensors().items()}
    tensors[name][:, :, 1:] = value
    tensors[name][:, :, 0] = 1 if value == 0 else value
    with pytest.raises(InputError, match=said):
        TreeProbes.stored(tensors, *(found.tensors()["start"].shape[0], 11))


def test_p_values_and_thresholds_agree(detector):
    statistic = torch.from_numpy(detector.null[::3].astype(np.float32)) + 0.01
    p = detector.p_value(statistic)
    for rate in (0.1, 0.4):
        assert ((p <= rate) == (statistic > detector.threshold(rate))).all()
    assert detector.threshold(1e-6) == math.inf
    assert p.min() >= 1 / (len(detector.null) + 1)


def test_an_edited_model_is_accepted_and_others_are_refused(bundled_model, tiny_model):
    import copy

    found = fit_detector(
        made_up(120), [OUTPUT], identity=model_identity(tiny_model), settings=DetectorSettings(**QUICK)
    )
    found.check_model(tiny_model)
    edited_model = copy.deepcopy(tiny_model)
    edited_model.blocks[1].mlp.W_out.data += 1
    found.check_model(edited_model)
    with pytest.raises(
        InputError, match="got a detector of a model with 4 layers, width 21 and 61 tokens for one with"
    ):
        found.check_model(bundled_model)
    other = copy.deepcopy(tiny_model)
    other.embed.W_E.data[0, 0] += 1
    with pytest.raises(InputError, match="another model of the same shape"):
        found.check_model(other)
    with pytest.raises(InputError, match="in float32 for one in float16.*load the model in float32"):
        found.identity.check(dataclasses.replace(found.identity, dtype="float16"))


def test_a_tokenizer_is_compared_where_both_are_known(bundled_model):
    known = model_identity(bundled_model)
    assert known.tokenizer is not None
    known.check(identity_of(bundled_model.W_E, known.layers, torch.float32))
    with pytest.raises(InputError, match="with the tokenizer"):
        known.check(dataclasses.replace(known, tokenizer="61-abc"))


def test_a_detector_says_what_it_reads(detector):
    assert detector.reads in ("output, residual of depth 2", "output") and detector.online
    assert not dataclasses.replace(detector, choice=FeatureChoice(("output", "text"))).online
    moved = detector.to("cpu")
    features = torch.zeros(1, len(detector.names))
    assert torch.equal(moved.score(features, 1), detector.score(features, 1))


def test_settings_that_leave_nothing_to_fit_on_are_refused():
    with pytest.raises(InputError, match="got calibrate 0.5 and conformal 0.5, which leaves no clusters to fit"):
        mm.DetectorSettings(calibrate=0.5, conformal=0.5)
    with pytest.raises(InputError, match="got no ks; need at least 1"):
        mm.DetectorSettings(ks=())
