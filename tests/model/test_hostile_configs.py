"""Configurations that a stranger wrote: a bomb or a request for code is one sentence, in no time and no memory."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechmem.model.load import load_model
from tests.model.hostile import FAMILIES, FEW, JSON, loads_or_says_why, refused

pytestmark = pytest.mark.filterwarnings("ignore:.* has no tokenizer:UserWarning")
LAYERS = {"gpt_neo": "num_layers", "gpt_neox": "num_hidden_layers", "gpt2": "n_layer"}
WIDTH = {"gpt_neo": "hidden_size", "gpt_neox": "hidden_size", "gpt2": "n_embd"}
HEADS = {"gpt_neo": "num_heads", "gpt_neox": "num_attention_heads", "gpt2": "n_head"}
INNER = {"gpt_neo": "intermediate_size", "gpt_neox": "intermediate_size", "gpt2": "n_inner"}
LONG = {"gpt_neo": "max_position_embeddings", "gpt_neox": "max_position_embeddings", "gpt2": "n_positions"}


BOMBS: dict[str, dict[str, Any]] = {
    "a million layers": {"layers": 10**6, "attention_types": [[["global"], 10**6]]},
    "10^12 layers": {"layers": 10**12},
    "10^10 labels": {"num_labels": 10**10},
    "10^9 times an attention type": {"attention_types": [[["global", "local"], 10**9]]},
    "a width of 10^9": {"width": 10**9},
    "a width of 2^62": {"width": 2**62, "heads": 1},
    "10^9 inner": {"inner": 10**9},
    "10^9 ids": {"vocab_size": 10**9},
    "10^12 positions": {"long": 10**12},
    "10^6 positions": {"long": 10**6},
    "10^9 heads": {"heads": 10**9},
}
MEASURE = """
import json, resource, sys, time, warnings
from mechmem.data.errors import InputError
from mechmem.model.load import load_model
warnings.simplefilter("ignore")
def grown():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
load_model(sys.argv[1])
for folder in sys.argv[2:]:
    before, start = grown(), time.perf_counter()
    try:
        load_model(folder)
        said = ""
    except InputError as error:
        said = str(error)
    print(json.dumps([said, time.perf_counter() - start, grown() - before]))
"""


def bomb(family: str, changes: dict[str, Any]) -> dict[str, Any]:
    names = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "inner": INNER, "long": LONG}
    return {names[key][family] if key in names else key: value for key, value in changes.items()}


def test_bombs_are_refused_in_less_than_a_second_and_100_mb(folders, tmp_path):
    cases = [(family, name) for family in FAMILIES for name in BOMBS]
    made = []
    for number, (family, name) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = json.loads((folders[family] / "config.json").read_text()) | bomb(family, BOMBS[name])
        (folder / "config.json").write_text(json.dumps(config))
        os.link(folders[family] / "model.safetensors", folder / "model.safetensors")
        made.append(str(folder))
    command = [sys.executable, "-c", MEASURE, str(folders["gpt_neo"]), *made]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-2000:]
    for (family, name), line in zip(cases, answer.stdout.splitlines(), strict=True):
        said, seconds, grown = json.loads(line)
        # Labels, and attention types of other families than GPT-Neo, say nothing about what is computed.
        ignored = name == "10^10 labels" or (family != "gpt_neo" and name == "10^9 times an attention type")
        assert bool(said) != ignored, (family, name, said)
        assert seconds < 1 and grown < 100e6, (family, name, seconds, grown)


def test_sizes_of_the_wrong_kind_are_refused(changed):
    for family in FAMILIES:
        for name in (LAYERS[family], WIDTH[family], HEADS[family], LONG[family], "vocab_size"):
            for wrong in (0, -1, True, 2.0, "4", None, [4], {"a": 4}, 2**80, float("nan"), float("inf")):
                refused(changed(family, **{name: wrong}), rf"config\.json: got .* as {name}; need a whole number")
    for wrong in (0, -3, True, "8", 1.5):
        refused(changed("gpt_neo", window_size=wrong), "as window_size; need a whole number")
        refused(changed("gpt2", n_inner=wrong), "as n_inner; need a whole number")
        refused(changed("gpt_neox", layer_norm_eps=wrong if wrong not in (True, 1.5) else -1.0), "as layer_norm_eps")


@pytest.mark.parametrize(
    "wrong",
    [
        "global", 3, {}, [3], [["global", 4]], [[["global"], -1]], [[["global"], True]], [[["global"], "4"]], [[[], 4]],
        [[["other"], 4]], [[["global"], 3]], [[["global"], 5]], [[[["global"]], 4]], [[["global"], 4, 5]],
    ],
)  # fmt: skip
def test_odd_attention_types_are_refused(wrong, changed):
    refused(changed("gpt_neo", attention_types=wrong, attention_layers=None), "attention")


def test_long_values_are_not_quoted_in_full(changed):
    for name in ("activation_function", "model_type", "hidden_size", "attention_types"):
        refused(changed("gpt_neo", **{name: "gelu" * 10**5}))


def test_attention_layers_are_read_where_both_are_given(changed):
    layers = ["local", "local", "global", "global"]
    model = load_model(changed("gpt_neo", attention_layers=layers))
    assert list(model.cfg.attn_types or []) == layers
    for wrong in (["local"] * 3, ["local"] * 5, ["other"] * 4, "locallocal", {"a": 1}):
        refused(changed("gpt_neo", attention_layers=wrong), "attention_layers is .*; need 4 of global, local")


@pytest.mark.parametrize(
    "wrong",
    [3, "x", [], {"rope_theta": -1}, {"rope_theta": "x"}, {"partial_rotary_factor": 2.0}, {"rope_type": ["a"]}],
)
def test_odd_rotary_settings_are_refused(wrong, changed):
    refused(changed("gpt_neox", rope_parameters=wrong))
    refused(changed("gpt_neox", rope_scaling=wrong))


@pytest.mark.parametrize("wrong", [["gpt_neo"], {"a": 1}, None, 7, "x" * 10**5, "llama"])
def test_other_model_types_are_refused(wrong, changed):
    refused(changed("gpt_neo", model_type=wrong), r"model_type is .*; supported are gpt_neo, gpt_neox, gpt2")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"3", b"null", b'"text"', b"\xff\xfe{}", b"{" * 10, b"[" * 100_000, b'{"a":' * 100_000,
        b'{"model_type": "gpt_neo", "vocab_size": ' + b"9" * 10_000 + b"}", b" " * (2**20 + 1), b"{}\0",
    ],
)  # fmt: skip
def test_configurations_that_are_no_plain_object_are_refused(content, changed):
    folder = changed("gpt_neo")
    (folder / "config.json").write_bytes(content)
    refused(folder, r"config\.json")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("quantization_config", "x"),
        ("compression_config", {"format": "dense"}),
        ("auto_map", {"AutoModelForCausalLM": "modeling_evil.Evil"}),
        ("per_layer_config", {"0": {"hidden_size": 5}}),
        ("pruned_heads", {"0": [1]}),
    ],
)
def test_what_asks_for_other_code_or_another_computation_is_refused(setting, value, changed):
    for family in FAMILIES:
        refused(changed(family, **{setting: value}), rf"config\.json: {setting} is set; ")


@FEW
@given(data=st.data())
def test_mutated_configurations_load_or_say_why(data, changed):
    family = data.draw(st.sampled_from(FAMILIES))
    folder = changed(family)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    names = st.sampled_from(
        [*sorted(config), "rope_scaling", "attention_layers", "rope_theta", "num_labels", "id2label"]
    )
    folder = changed(family, **data.draw(st.dictionaries(names, JSON, min_size=1, max_size=3)))
    loads_or_says_why(folder)
