import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import mechmem.model.export as export_module
from mechmem.data.errors import InputError
from mechmem.model.export import export
from mechmem.model.exported_families import ExportedFamily
from mechmem.model.load import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.* has no tokenizer:UserWarning")


def reload(folder):
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


@torch.no_grad()
def assert_same_logits(model, folder):
    ids = torch.randint(0, model.cfg.d_vocab, (3, model.cfg.n_ctx), generator=torch.Generator().manual_seed(3))
    assert torch.allclose(model(ids), reload(folder)(ids).logits, atol=2e-5)


PROBE = torch.randint(0, 61, (3, 40), generator=torch.Generator().manual_seed(3))


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.view(torch.int32), right.view(torch.int32))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt_neo", {}),
        ("gpt_neo", {"tie_word_embeddings": False}),
        ("gpt_neo", {"intermediate_size": None}),
        ("gpt2", {}),
        ("gpt2", {"n_inner": None, "tie_word_embeddings": False}),
        ("gpt2", {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"}),
        ("gpt_neox", {}),
        ("gpt_neox", {"tie_word_embeddings": True}),
        ("gpt_neox", {"use_parallel_residual": False, "hidden_act": "gelu_new", "rotary_pct": 1.0, "hidden_size": 60}),
    ],
)
def test_an_unedited_model_comes_back_bit_for_bit(family, changes, write_checkpoint, tmp_path):
    folder, reference = write_checkpoint(family, **changes)
    reference.get_input_embeddings().weight.data[0, 0] = -0.0
    reference.save_pretrained(folder)
    model = load_model(folder)
    export(model, tmp_path / "out")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    assert all(same_bits(before[name], after[name]) for name in before)
    assert_same_logits(model, tmp_path / "out")
    assert same_bits(reference(PROBE).logits, reload(tmp_path / "out")(PROBE).logits)
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1, "all files are readable alike"
    settings = [json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "out")]
    # Written out where they were abbreviated.
    written = {"attention_types", "intermediate_size", "n_inner"}
    assert {key for key in settings[0] | settings[1] if settings[0].get(key) != settings[1].get(key)} <= written


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sources_and_parts_come_back_as_float32(family, dtype, write_checkpoint, tmp_path):
    folder, reference = write_checkpoint(family)
    reference.to(dtype).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    parts = sorted(folder.glob("*.safetensors"))
    assert len(parts) > 1
    before = {name: tensor for part in parts for name, tensor in load_file(part).items()}
    assert {tensor.dtype for tensor in before.values()} == {dtype}
    export(load_model(folder), tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    assert all(same_bits(before[name].float(), after[name]) for name in before)
    source = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    assert same_bits(source(PROBE).logits, reload(tmp_path / "out")(PROBE).logits)


def test_rotary_settings_of_older_files_are_written_as_they_are_today(write_checkpoint, tmp_path):
    folder, _ = write_checkpoint("gpt_neox")
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("rope_parameters")
    (folder / "config.json").write_text(json.dumps(config | {"rotary_pct": 0.5, "rotary_emb_base": 700}))
    model = load_model(folder)
    export(model, tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert not {"rotary_pct", "rotary_emb_base"} & set(written)
    assert written["rope_parameters"] == {
        "rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.5
    }  # fmt: skip
    assert_same_logits(model, tmp_path / "out")


def test_a_rotary_model_built_by_hand_is_written(folders, tmp_path):
    model = load_model(folders["gpt_neox"])
    del model.mechmem_provenance
    export(model, tmp_path / "out")
    # 6 / 13 * 13 is below 6 in binary, and transformers rounds down.
    assert load_model(tmp_path / "out").cfg.rotary_dim == model.cfg.rotary_dim == 6
    assert_same_logits(model, tmp_path / "out")


# Where a number stands in TransformerLens' tensor -> the checkpoint's tensor, and where it stands there.
PLACES = {
    "gpt_neo": {
        "blocks.0.attn.W_Q": ((2, 5, 3), "transformer.h.0.attn.attention.q_proj.weight", (2 * 7 + 3, 5)),
        "blocks.1.attn.W_K": ((2, 5, 3), "transformer.h.1.attn.attention.k_proj.weight", (2 * 7 + 3, 5)),
        "blocks.2.attn.W_V": ((2, 5, 3), "transformer.h.2.attn.attention.v_proj.weight", (2 * 7 + 3, 5)),
        "blocks.3.attn.W_O": ((2, 3, 5), "transformer.h.3.attn.attention.out_proj.weight", (5, 2 * 7 + 3)),
        "blocks.3.attn.b_O": ((5,), "transformer.h.3.attn.attention.out_proj.bias", (5,)),
        "blocks.0.mlp.W_in": ((5, 41), "transformer.h.0.mlp.c_fc.weight", (41, 5)),
        "blocks.0.mlp.b_in": ((41,), "transformer.h.0.mlp.c_fc.bias", (41,)),
        "blocks.1.mlp.W_out": ((41, 5), "transformer.h.1.mlp.c_proj.weight", (5, 41)),
        "blocks.1.mlp.b_out": ((5,), "transformer.h.1.mlp.c_proj.bias", (5,)),
        "blocks.2.ln1.w": ((5,), "transformer.h.2.ln_1.weight", (5,)),
        "blocks.2.ln2.b": ((5,), "transformer.h.2.ln_2.bias", (5,)),
        "ln_final.w": ((5,), "transformer.ln_f.weight", (5,)),
        "pos_embed.W_pos": ((11, 5), "transformer.wpe.weight", (11, 5)),
    },
    "gpt2": {
        "blocks.0.attn.W_Q": ((2, 5, 3), "transformer.h.0.attn.c_attn.weight", (5, 2 * 7 + 3)),
        "blocks.1.attn.W_K": ((2, 5, 3), "transformer.h.1.attn.c_attn.weight", (5, 21 + 2 * 7 + 3)),
        "blocks.2.attn.W_V": ((2, 5, 3), "transformer.h.2.attn.c_attn.weight", (5, 42 + 2 * 7 + 3)),
        "blocks.2.attn.b_Q": ((2, 3), "transformer.h.2.attn.c_attn.bias", (2 * 7 + 3,)),
        "blocks.1.attn.b_V": ((1, 4), "transformer.h.1.attn.c_attn.bias", (42 + 7 + 4,)),
        "blocks.3.attn.W_O": ((2, 3, 5), "transformer.h.3.attn.c_proj.weight", (2 * 7 + 3, 5)),
        "blocks.3.attn.b_O": ((5,), "transformer.h.3.attn.c_proj.bias", (5,)),
        "blocks.0.mlp.W_in": ((5, 41), "transformer.h.0.mlp.c_fc.weight", (5, 41)),
        "blocks.1.mlp.W_out": ((41, 5), "transformer.h.1.mlp.c_proj.weight", (41, 5)),
        "blocks.2.ln2.b": ((5,), "transformer.h.2.ln_2.bias", (5,)),
        "pos_embed.W_pos": ((11, 5), "transformer.wpe.weight", (11, 5)),
    },
    "gpt_neox": {
        "blocks.0.attn.W_Q": ((2, 5, 3), "gpt_neox.layers.0.attention.query_key_value.weight", (2 * 39 + 3, 5)),
        "blocks.1.attn.W_K": ((2, 5, 3), "gpt_neox.layers.1.attention.query_key_value.weight", (2 * 39 + 13 + 3, 5)),
        "blocks.2.attn.W_V": ((4, 5, 12), "gpt_neox.layers.2.attention.query_key_value.weight", (4 * 39 + 26 + 12, 5)),
        "blocks.2.attn.b_K": ((3, 7), "gpt_neox.layers.2.attention.query_key_value.bias", (3 * 39 + 13 + 7,)),
        "blocks.1.attn.W_O": ((2, 3, 5), "gpt_neox.layers.1.attention.dense.weight", (5, 2 * 13 + 3)),
        "blocks.1.attn.b_O": ((5,), "gpt_neox.layers.1.attention.dense.bias", (5,)),
        "blocks.0.mlp.W_in": ((5, 41), "gpt_neox.layers.0.mlp.dense_h_to_4h.weight", (41, 5)),
        "blocks.1.mlp.W_out": ((41, 5), "gpt_neox.layers.1.mlp.dense_4h_to_h.weight", (5, 41)),
        "blocks.2.ln1.w": ((5,), "gpt_neox.layers.2.input_layernorm.weight", (5,)),
        "ln_final.b": ((5,), "gpt_neox.final_layer_norm.bias", (5,)),
        "unembed.W_U": ((5, 11), "embed_out.weight", (11, 5)),
    },
}


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in PLACES for name in PLACES[family]])
def test_an_edit_of_one_weight_changes_one_number_of_one_tensor(family, name, folders, tmp_path):
    edited = load_model(folders[family])
    at, theirs, there = PLACES[family][name]
    edited.get_parameter(name).data[at] += 0.5
    export(edited, tmp_path / "out")
    before, after = load_file(folders[family] / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert [n for n in before if not same_bits(before[n], after[n])] == [theirs]
    assert torch.nonzero(before[theirs] != after[theirs]).tolist() == [list(there)]
    assert_same_logits(edited, tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert all(same_bits(tensor, again.get_parameter(n)) for n, tensor in edited.named_parameters())


@pytest.mark.parametrize("name", ["embed.W_E", "unembed.W_U"])
@pytest.mark.parametrize("family", ["gpt_neo", "gpt2", "gpt_neox"])
def test_an_edit_of_one_embedding_unties_them(family, name, write_checkpoint, tmp_path):
    folder, _ = write_checkpoint(family, tie_word_embeddings=True)
    edited = load_model(folder)
    edited.get_parameter(name).data[3, 4] += 0.5
    export(edited, tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    assert ("embed_out.weight" if family == "gpt_neox" else "lm_head.weight") in written
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    assert_same_logits(edited, tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert torch.equal(again.W_E, edited.W_E) and torch.equal(again.W_U, edited.W_U)


def test_the_tokenizer_goes_along(write_checkpoint, write_tokenizer, tmp_path):
    folder, _ = write_checkpoint("gpt_neo", vocab_size=283)
    write_tokenizer(folder, 283)
    model = load_model(folder)
    export(model, tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert load_model(tmp_path / "out").to_tokens("the bell").tolist() == model.to_tokens("the bell").tolist()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("the bell") == model.to_tokens("the bell")[0].tolist()


def test_a_model_built_by_hand_is_written(tiny_pair, tmp_path):
    export(tiny_pair.hooked, tmp_path / "out")
    assert_same_logits(tiny_pair.hooked, tmp_path / "out")


def test_a_half_precision_model_is_written_as_float32(write_checkpoint, tmp_path):
    folder, _ = write_checkpoint("gpt_neo")
    export(load_model(folder, dtype=torch.bfloat16), tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()} == {torch.float32}
    assert reload(tmp_path / "out").dtype == torch.float32


def test_what_cannot_be_written_is_refused(write_checkpoint, tmp_path):
    folder, _ = write_checkpoint("gpt_neo")
    with pytest.raises(
        InputError, match="the weights are folded, which cannot be undone: .* load with processing='raw'"
    ):
        export(load_model(folder, processing="folded"), tmp_path / "out")
    stranger = load_model(folder)
    stranger.cfg.original_architecture = "LlamaForCausalLM"
    with pytest.raises(
        InputError, match="family is LlamaForCausalLM; need one of GPTNeoForCausalLM, GPT2LMHeadModel, GPTNeoXForCausal"
    ):
        export(stranger, tmp_path / "out")
    scaled = load_model(folder)
    scaled.cfg.use_attn_scale = True
    with pytest.raises(
        InputError, match="use_attn_scale is True and transformers' GPT-Neo of the same sizes has False"
    ):
        export(scaled, tmp_path / "out")
    for name, value, sentence in (
        ("blocks.2.attn.b_V", 1.0, "'blocks.2.attn.b_V' is not zero and GPT-Neo has no such bias"),
        ("unembed.b_U", 1.0, "'unembed.b_U' is not zero"),
        ("ln_final.b", float("nan"), "'transformer.ln_f.bias' holds NaN or infinite weights, .*; need finite ones"),
    ):
        model = load_model(folder)
        model.get_parameter(name).data.view(-1)[1] = value
        with pytest.raises(InputError, match=sentence):
            export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_left_as_it_is(write_checkpoint, tmp_path):
    folder, _ = write_checkpoint("gpt_neo")
    model = load_model(folder)
    (tmp_path / "out").mkdir()
    export(model, tmp_path / "out")
    before = (tmp_path / "out/model.safetensors").stat().st_mtime_ns
    with pytest.raises(InputError, match="exists and is not empty; it holds .* need a new or empty folder"):
        export(model, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").stat().st_mtime_ns == before


def test_a_folder_of_somebody_else_is_left_as_it_is(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(ExportedFamily, "tensors", lambda *_: pytest.fail("it began"))
    taken, file, link = tmp_path / "taken", tmp_path / "file", tmp_path / "link"
    taken.mkdir()
    (taken / "photograph.jpg").write_bytes(b"mine")
    (taken / ".mechmem-notes").write_bytes(b"mine too")
    file.write_bytes(b"mine")
    link.symlink_to(tmp_path / "nowhere")
    for folder, sentence in (
        (taken, r"taken: exists and is not empty; it holds \.mechmem-notes and 1 more; need a new or empty folder"),
        (file, "file: is a file; need a folder"),
        (file / "below", "is a file; need a folder there"),
        (link, "link that leads nowhere"),
        (tmp_path / ("x" * 300), "a name of 300 bytes; need at most 255"),
        (tmp_path / "nul\0", "null character"),
    ):
        with pytest.raises(InputError, match=sentence):
            export(tiny_model, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "taken"]
    assert (taken / "photograph.jpg").read_bytes() == file.read_bytes() == b"mine"


def test_a_link_is_written_where_it_leads_and_the_current_folder_is_refused(tiny_model, tmp_path, monkeypatch):
    for name in ("target", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    export(tiny_model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target/model.safetensors").is_file()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="is the folder you are in; need another one"):
        export(tiny_model, ".")
    assert not list((tmp_path / "here").iterdir())


def test_weights_that_float32_cannot_hold_are_refused(write_checkpoint, tmp_path):
    folder, _ = write_checkpoint("gpt_neo")
    model = load_model(folder, dtype=torch.float64)
    model.blocks[1].mlp.W_in.data[0, 0] = 1e300
    with pytest.raises(InputError, match=r"transformer\.h\.1\.mlp.* or some that float32 cannot hold"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bombs_in_the_sources_configuration_are_not_copied(write_checkpoint, tmp_path):
    folder, _ = write_checkpoint("gpt_neo")
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_labels": 10**12, "attn_implementation": "someone/evil", "attention_dropout": 0.25}
    (folder / "config.json").write_text(json.dumps(config))
    export(load_model(folder), tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert "num_labels" not in written and "evil" not in str(written) and written["attention_dropout"] == 0.25


def test_an_export_that_fails_leaves_nothing(write_checkpoint, tmp_path, monkeypatch):
    folder, _ = write_checkpoint("gpt_neo")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(export_module, "_write_tokenizer", fail)
    with pytest.raises(OSError, match="disk full"):
        export(load_model(folder), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
