import json
import tomllib
from dataclasses import asdict, fields

import pytest
from jaxtyping import TypeCheckError

from mechmem.data.errors import InputError
from mechmem.study.config import apply_settings, config_text, described, parse_assignments, read_config
from mechmem.study.settings import BUNDLED_RATES, StudySettings, full

DEFAULTS = StudySettings()


def test_the_printed_defaults_are_a_config_that_names_and_explains_every_setting(tmp_path):
    for settings in (DEFAULTS, full(DEFAULTS)):
        path = tmp_path / "study.toml"
        path.write_text(config_text(settings))
        assert apply_settings(DEFAULTS if settings is DEFAULTS else full(DEFAULTS), read_config(path)) == settings
        for field in fields(StudySettings):
            comment = next(line for line in config_text(settings).splitlines() if line.startswith(f"# {field.name}: "))
            assert len(comment) > len(field.name) + 12


def test_every_setting_can_be_set_and_a_study_json_is_a_config(tmp_path):
    values = parse_assignments(
        ["pairs=24", "model=gpt2", "corpus=a b.txt", "limit=none", 'edits=["npo top 1e-3"]', "patched=1", "decoded=0"]
    )
    settings = apply_settings(DEFAULTS, values)
    assert (settings.pairs, settings.model, settings.corpus, settings.limit) == (24, "gpt2", "a b.txt", None)
    assert settings.edits == ("npo top 1e-3",) and settings.patched == 1.0 and settings.decoded == 0
    (tmp_path / "study.json").write_text(json.dumps({"settings": described(settings), "timings": {}}))
    assert apply_settings(DEFAULTS, read_config(tmp_path / "study.json")) == settings
    assert set(described(settings)) == set(asdict(settings))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pair": 24}, "unknown setting 'pair'; did you mean pairs?"),
        ({"zzz": 1}, "unknown setting 'zzz'; need one of model, corpus"),
        ({"pairs": "many"}, "got 'many' as pairs; need a whole number of at least 1"),
        ({"pairs": 2.5}, "got 2.5 as pairs; need a whole number"),
        ({"pairs": True}, "got True as pairs; need a whole number"),
        ({"pairs": None}, "got None as pairs; need a whole number"),
        ({"limit": "x"}, "got 'x' as limit; need a whole number of at least 1"),
        ({"fraction": "x"}, "got 'x' as fraction; need a finite number above 0 and at most 1"),
        ({"edits": "npo all"}, "got 'npo all' as edits; need several values"),
        ({"pairs": 0}, "got 0 as pairs; need a whole number of at least 1"),
        ({"fraction": 1.5}, "got 1.5 as fraction; need a finite number above 0 and at most 1"),
        ({"edits": ["npo"]}, "need METHOD WEIGHTS or METHOD WEIGHTS RATE"),
        ({"edits": ["npo some"]}, "with weights of all, top, fisher, random"),
        ({"edits": ["npo top fast"]}, "need a number or auto"),
        ({"edits": ["npo top -1"]}, "need a learning rate above 0"),
        ({"edits": ["npo top", "npo top 1e-3"]}, "each method and weights once"),
        ({"edits": ["magic top"]}, "need one of npo, simnpo"),
    ],
)
def test_bad_settings_are_one_sentence(values, message):
    with pytest.raises((InputError, TypeCheckError), match=message.replace("?", r"\?")):
        apply_settings(DEFAULTS, values)


def test_bad_files_and_assignments_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="need NAME=VALUE"):
        parse_assignments(["pairs"])
    with pytest.raises(InputError, match="no such file"):
        read_config(tmp_path / "none.toml")
    for name, text, said in (
        ("a.toml", "pairs = ", "TOML"),
        ("a.json", "{", "JSON"),
        ("b.json", "[1]", "holds a list"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=said):
            read_config(tmp_path / name)


def test_the_bundled_model_has_fixed_rates_and_others_search_one():
    assert [edit.learning_rate for edit in DEFAULTS.planned_edits()][:2] == [1e-4, 1e-2]
    other = apply_settings(DEFAULTS, {"model": "gpt2", "edits": ["npo all", "npo top 1e-3", "ascent all auto"]})
    assert [edit.learning_rate for edit in other.planned_edits()] == [None, 1e-3, None]
    assert DEFAULTS.planned_edits()[0].title(0.001) == "NPO, all weights"
    assert all(rate > 0 for rate in BUNDLED_RATES.values())


def test_full_is_larger_in_every_size_it_changes():
    small, large = tomllib.loads(config_text(DEFAULTS)), tomllib.loads(config_text(full(DEFAULTS)))
    for name in ("gradient_sample", "ablation_sample", "pairs", "targets", "evaluated", "attack_prefixes"):
        assert large[name] > small[name]
    assert len(large["edits"]) > len(small["edits"])


def test_one_paragraph_cannot_stand_for_the_mean_of_others():
    with pytest.raises(InputError, match="got 1 as ablation_sample; need at least 2"):
        StudySettings(ablation_sample=1)
