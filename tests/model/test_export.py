import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import mechmem.model.export as export_module
from mechmem.data.errors import InputError
from mechmem.model.export import export
from mechmem.model.load import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.* has no tokenizer:UserWarning")


def reload(folder):
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


@torch.no_grad()
def assert_same_logits(model, folder):
    ids = torch.randint(0, model.cfg.d_vocab, (3, model.cfg.n_ctx), generator=torch.Generator().manual_seed(3))
    assert torch.allclose(model(ids), reload(folder)(ids).logits, atol=2e-5)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.view(torch.int32), right.view(torch.int32))


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"intermediate_size": None}])
def test_an_unedited_model_comes_back_bit_for_bit(changes, write_checkpoint, tmp_path):
    folder, reference = write_checkpoint("gpt_neo", **changes)
    reference.transformer.wte.weight.data[0, 0] = -0.0
    reference.save_pretrained(folder)
    model = load_model(folder)
    export(model, tmp_path / "out")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    assert all(same_bits(before[name], after[name]) for name in before)
    assert_same_logits(model, tmp_path / "out")
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1, "all files are readable alike"
    settings = [json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "out")]
    # Written out where they were abbreviated.
    written = {"attention_types", "intermediate_size"}
    assert {key for key in settings[0] | settings[1] if settings[0].get(key) != settings[1].get(key)} <= written


PLACES = {
    "blocks.0.attn.W_Q": "transformer.h.0.attn.attention.q_proj.weight",
    "blocks.1.attn.W_K": "transformer.h.1.attn.attention.k_proj.weight",
    "blocks.2.attn.W_V": "transformer.h.2.attn.attention.v_proj.weight",
    "blocks.3.attn.W_O": "transformer.h.3.attn.attention.out_proj.weight",
    "blocks.3.attn.b_O": "transformer.h.3.attn.attention.out_proj.bias",
    "blocks.0.mlp.W_in": "transformer.h.0.mlp.c_fc.weight",
    "blocks.0.mlp.b_in": "transformer.h.0.mlp.c_fc.bias",
    "blocks.1.mlp.W_out": "transformer.h.1.mlp.c_proj.weight",
    "blocks.1.mlp.b_out": "transformer.h.1.mlp.c_proj.bias",
    "blocks.2.ln1.w": "transformer.h.2.ln_1.weight",
    "blocks.2.ln2.b": "transformer.h.2.ln_2.bias",
    "ln_final.w": "transformer.ln_f.weight",
    "pos_embed.W_pos": "transformer.wpe.weight",
}


@pytest.mark.parametrize("name", PLACES)
def test_an_edit_of_one_weight_changes_one_number_of_one_tensor(name, write_checkpoint, tmp_path):
    folder, _ = write_checkpoint("gpt_neo")
    edited = copy.deepcopy(load_model(folder))
    edited.get_parameter(name).data.view(-1)[13] += 0.5
    export(edited, tmp_path / "out")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert [n for n in before if not same_bits(before[n], after[n])] == [PLACES[name]]
    assert int((before[PLACES[name]] != after[PLACES[name]]).sum()) == 1
    assert_same_logits(edited, tmp_path / "out")
    assert_same_logits(load_model(tmp_path / "out"), tmp_path / "out")


@pytest.mark.parametrize("name", ["embed.W_E", "unembed.W_U"])
def test_an_edit_of_one_embedding_unties_them(name, write_checkpoint, tmp_path):
    folder, _ = write_checkpoint("gpt_neo")
    edited = load_model(folder)
    edited.get_parameter(name).data[3, 4] += 0.5
    export(edited, tmp_path / "out")
    assert "lm_head.weight" in load_file(tmp_path / "out/model.safetensors")
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
    other, _ = write_checkpoint("gpt2", "other")
    with pytest.raises(InputError, match="family is GPT2LMHeadModel; need GPTNeoForCausalLM, the only one"):
        export(load_model(other), tmp_path / "out")
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
    monkeypatch.setattr(export_module, "_neo_tensors", lambda *_: pytest.fail("it began"))
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
