import copy
import inspect
import json
import socket
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from mechmem.data.errors import InputError
from mechmem.model.architectures import ACTIVATIONS
from mechmem.model.load import load_model, provenance

pytestmark = pytest.mark.filterwarnings("ignore:.* has no tokenizer:UserWarning")
transformers_logging.disable_progress_bar()
SHARED_TOKENIZER = Path(__file__).parents[2] / "../shared/data/gpt2-tokenizer"
VARIANTS = {
    "gpt_neo": ("gpt_neo", {}),
    "gpt_neo, three layers, default width": (
        "gpt_neo",
        {"num_layers": 3, "attention_types": [[["local"], 2], [["global"], 1]], "intermediate_size": None},
    ),
    "gpt_neo, untied": ("gpt_neo", {"tie_word_embeddings": False}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_neox, tied": ("gpt_neox", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {}),
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": None}),
    "gpt2, unscaled, untied": ("gpt2", {"scale_attn_weights": False, "tie_word_embeddings": False}),
}


def tokens(model, rows=3) -> torch.Tensor:
    return torch.randint(0, model.cfg.d_vocab, (rows, model.cfg.n_ctx), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def differences(model, reference) -> tuple[float, float]:
    """Largest difference of logits and of log-probabilities over the whole context."""
    ids = tokens(model)
    ours, theirs = model(ids), reference(ids).logits
    return (
        float((ours - theirs).abs().max()),
        float((ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max()),
    )


def rewrite(folder: Path, change) -> None:
    """Pass the tensors of model.safetensors through `change`."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_computes_what_transformers_computes(variant, write_checkpoint):
    family, changes = VARIANTS[variant]
    folder, reference = write_checkpoint(family, **changes)
    raw, folded = load_model(folder), load_model(folder, processing="folded")
    assert differences(raw, reference)[0] < 2e-5
    assert differences(folded, reference)[1] < 2e-5
    assert not raw.training and all(p.requires_grad for p in raw.parameters())
    # Folding must have done something: norms without weights, another unembedding.
    assert type(folded.ln_final).__name__ == "LayerNormPre" and type(raw.ln_final).__name__ == "LayerNorm"
    assert differences(folded, reference)[0] > 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
def test_folded_weights_are_those_of_transformer_lens(variant, write_checkpoint):
    family, changes = VARIANTS[variant]
    folder, _ = write_checkpoint(family, **changes)
    expected = load_model(folder)
    expected.process_weights_()
    folded = load_model(folder, processing="folded")
    assert folded.state_dict().keys() == expected.state_dict().keys()
    for name, parameter in expected.named_parameters():
        assert torch.allclose(folded.get_parameter(name), parameter, atol=2e-6), name


def test_the_local_window_and_every_setting_count(write_checkpoint):
    folder, reference = write_checkpoint("gpt_neo")
    for setting, value in {"window_size": 7, "attn_scale": 2.0, "eps": 1e-5}.items():
        model = load_model(folder)
        for module in model.modules():
            if setting == "window_size" and hasattr(module, "cfg"):
                setattr(module.cfg, setting, value)
            elif hasattr(module, setting):
                setattr(module, setting, value)
        assert differences(model, reference)[0] > 1e-4, setting


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_one_name_are_one_function(activation, write_checkpoint):
    folder, reference = write_checkpoint("gpt2", activation_function=activation)
    assert differences(load_model(folder), reference)[0] < 2e-5


@pytest.mark.parametrize("family", ["gpt_neo", "gpt_neox", "gpt2"])
def test_parts_of_a_divided_checkpoint_are_read(family, write_checkpoint):
    whole, reference = write_checkpoint(family)
    divided, _ = write_checkpoint(family, "divided", shard="20KB")
    assert len(list(divided.glob("*.safetensors"))) > 2
    model = load_model(divided)
    assert differences(model, reference)[0] < 2e-5
    assert provenance(model).weight_hash == provenance(load_model(whole)).weight_hash


def older_names(family: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As on the hub: masks beside the weights, GPT-2 saved without its head, two names for GPT-NeoX's unembedding."""
    masks = {
        "gpt_neo": "transformer.h.1.attn.attention.",
        "gpt_neox": "gpt_neox.layers.1.attention.",
        "gpt2": "h.1.attn.",
    }
    renamed = {
        name.removeprefix("transformer.") if family == "gpt2" else name.replace("embed_out.", "lm_head."): tensor
        for name, tensor in tensors.items()
    }
    return (
        renamed
        | {masks[family] + "bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8)}
        | {masks[family] + "masked_bias": torch.tensor(-1e9)}
    )


@pytest.mark.parametrize("family", ["gpt_neo", "gpt_neox", "gpt2"])
def test_checkpoints_as_the_hub_holds_them_are_read(family, write_checkpoint):
    folder, reference = write_checkpoint(family)
    before = provenance(load_model(folder)).weight_hash
    rewrite(folder, lambda tensors: older_names(family, tensors))
    model = load_model(folder)
    assert differences(model, reference)[0] < 2e-5
    assert provenance(model).weight_hash == before


@pytest.mark.parametrize("processing", ["raw", "folded"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_files_give_float32_models(stored, processing, write_checkpoint):
    folder, _ = write_checkpoint("gpt_neo")
    rewrite(folder, lambda tensors: {name: tensor.to(stored) for name, tensor in tensors.items()})
    reference = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    assert differences(load_model(folder, processing=processing), reference)[1] < 2e-5


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 2e-5), (torch.bfloat16, 0.5)])
def test_weights_have_the_dtype_asked_for(dtype, bound, write_checkpoint):
    folder, reference = write_checkpoint("gpt_neo")
    for processing in ("raw", "folded"):
        model = load_model(folder, processing=processing, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert differences(model, reference)[1] < bound


def test_a_tied_configuration_with_two_embeddings_is_read_as_transformers_reads_it(write_checkpoint):
    folder, _ = write_checkpoint("gpt_neo")
    rewrite(folder, lambda t: t | {"lm_head.weight": t["transformer.wte.weight"].flip(0).contiguous()})
    reference = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    model = load_model(folder)
    assert differences(model, reference)[0] < 2e-5
    assert not torch.equal(model.W_U, model.W_E.T)


def test_provenance_names_the_weights_and_survives_a_copy(write_checkpoint):
    folder, _ = write_checkpoint("gpt_neo")
    raw, folded = load_model(str(folder)), load_model(folder, processing="folded")
    known = provenance(copy.deepcopy(raw))
    assert (known.name, known.folder, known.processing) == (str(folder), folder, "raw")
    assert provenance(folded).processing == "folded"
    assert provenance(folded).weight_hash == known.weight_hash and len(known.weight_hash) == 16

    def flip_one_sign(tensors):
        tensors["transformer.h.2.mlp.c_fc.weight"][5, 3] *= -1
        return tensors

    rewrite(folder, flip_one_sign)
    assert provenance(load_model(folder)).weight_hash != known.weight_hash


def test_a_model_from_elsewhere_has_no_provenance(tiny_model):
    with pytest.raises(InputError, match="of unknown origin; need one that load_model loaded"):
        provenance(tiny_model)


def test_loading_needs_no_network_warns_of_nothing_and_draws_no_random_number(
    write_checkpoint, write_tokenizer, monkeypatch
):
    folder, _ = write_checkpoint("gpt_neo", vocab_size=283)
    write_tokenizer(folder, 283)

    def refuse(*arguments, **_):
        raise AssertionError(f"the network was asked: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    state = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for processing in ("raw", "folded"):
            load_model(folder, processing=processing)
    assert torch.equal(torch.random.get_rng_state(), state)


# Tokenizers


def test_text_is_encoded_without_a_bos_token(write_checkpoint, write_tokenizer):
    folder, _ = write_checkpoint("gpt_neo", vocab_size=283)
    write_tokenizer(folder, 283)
    model = load_model(folder)
    ids = model.to_tokens("the boat left")[0].tolist()
    assert model.tokenizer is not None and ids == model.tokenizer.encode("the boat left")
    assert model.to_string(ids) == "the boat left"
    assert 0 not in ids and model.tokenizer.eos_token_id == 0 and model.tokenizer.padding_side == "right"


def test_a_tokenizer_in_two_files_gives_the_same_ids(write_checkpoint, write_tokenizer):
    folder, _ = write_checkpoint("gpt_neo", vocab_size=283)
    write_tokenizer(folder, 283)
    expected = load_model(folder).to_tokens("The bell, the boat.\n<|endoftext|>")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    (folder / "tokenizer.json").unlink()
    assert torch.equal(load_model(folder).to_tokens("The bell, the boat.\n<|endoftext|>"), expected)


def test_a_tokenizer_as_transformers_saves_it_is_read(write_checkpoint, write_tokenizer):
    folder, _ = write_checkpoint("gpt_neo", vocab_size=283)
    write_tokenizer(folder, 283)
    expected = load_model(folder).to_tokens("the bakery opened")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    assert torch.equal(load_model(folder).to_tokens("the bakery opened"), expected)


@pytest.mark.skipif(not SHARED_TOKENIZER.is_dir(), reason="GPT-2's tokenizer files are not here")
def test_gpt2s_own_tokenizer_files_are_read(write_checkpoint):
    folder, _ = write_checkpoint("gpt_neo", vocab_size=50257, hidden_size=6, intermediate_size=5)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((SHARED_TOKENIZER / name).read_bytes())
    model = load_model(folder)
    assert model.to_tokens("Hello world<|endoftext|>").tolist() == [[15496, 995, 50256]]


def test_a_folder_without_a_tokenizer_works_on_ids_and_warns_once(write_checkpoint):
    folder, reference = write_checkpoint("gpt_neo")
    with pytest.warns(UserWarning, match="has no tokenizer .*: the model works on token ids, not on text") as caught:
        model = load_model(folder)
    assert len(caught) == 1
    assert model.tokenizer is None and differences(model, reference)[0] < 2e-5


def test_a_vocabulary_far_larger_than_the_tokenizers_is_refused(write_checkpoint, write_tokenizer):
    folder, _ = write_checkpoint("gpt_neo", vocab_size=283 + 1024)
    write_tokenizer(folder, 283)
    with pytest.raises(InputError, match="vocabulary has 1307 ids and its tokenizer only 283; need fewer than 1024"):
        load_model(folder)


def test_a_tokenizer_with_ids_beyond_the_model_is_refused(write_checkpoint, write_tokenizer):
    folder, _ = write_checkpoint("gpt_neox", vocab_size=256)
    write_tokenizer(folder, 283)
    with pytest.raises(InputError, match="gives ids up to 282 and the model's vocabulary has 256; need ids below 256"):
        load_model(folder)


def test_an_unreadable_tokenizer_is_refused(write_checkpoint):
    folder, _ = write_checkpoint("gpt_neo")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json: not readable as JSON"):
        load_model(folder)


# Bad input


def without_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


def configured(**changes):
    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def cut_off(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def empty_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")


def pickled(folder):
    # Not even a pickle: opening it in any way would fail.
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def missing_part(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"transformer.wte.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def part_elsewhere(folder):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def tensor_changed(name, change):
    return lambda folder: rewrite(folder, lambda tensors: tensors | {name: change(tensors[name].clone())})


def with_value(value):
    def change(tensor):
        tensor.view(-1)[17] = value
        return tensor

    return change


FC = "transformer.h.3.mlp.c_fc.weight"
BAD = {
    "no configuration": (without_config, r"config\.json: no such file; need a folder that transformers'"),
    "broken configuration": (broken_config, r"config\.json: not readable as JSON .*; write or fetch it again"),
    "other family": (
        configured(model_type="llama"),
        r"config\.json: model_type is 'llama'; supported are gpt_neo, gpt_neox, gpt2: load a GPT-Neo",
    ),
    "inconsistent configuration": (
        configured(num_layers=5),
        r"config\.json: it describes 5 layers of at least 12 tensors",
    ),
    "mistyped configuration": (
        configured(hidden_size="wide"),
        r"config\.json: got 'wide' as hidden_size; need a whole number of at least 1",
    ),
    "indivisible heads": (configured(num_heads=4), "hidden size 21 is no multiple of 4 heads; load a model without it"),
    "other activation": (configured(activation_function="tanh"), "activation 'tanh' is not supported, only gelu, "),
    "cut off": (cut_off, r"model\.safetensors: not a whole safetensors file .*bytes\), it may have been cut off"),
    "empty": (empty_weights, r"model\.safetensors: not a whole safetensors file .* 0 bytes"),
    "pickle": (
        pickled,
        r"found only pytorch_model\.bin, a pickle, which can run code when opened and is refused\. If .*"
        r"save_pretrained\(folder, safe_serialization=True\)",
    ),
    "no weights": (no_weights, r"need weights in model\.safetensors and found none"),
    "missing part": (missing_part, "it lists 'model-00001-of-00002.safetensors', which is not in the folder"),
    "part elsewhere": (part_elsewhere, "it lists '../model.safetensors', which is not in the folder"),
    "missing tensor": (
        lambda folder: rewrite(folder, lambda t: {name: tensor for name, tensor in t.items() if name != FC}),
        f"1 tensors are missing, the first is '{FC}'; need all 57",
    ),
    "surplus tensor": (
        lambda folder: rewrite(folder, lambda t: t | {FC.replace("3", "4"): t[FC].clone()}),
        f"1 tensors have no place .*, the first is '{FC.replace('3', '4')}'",
    ),
    "misshapen tensor": (
        tensor_changed(FC, lambda t: t.T.contiguous()),
        rf"tensor '{FC}' has shape \[21, 53\]; config.json describes \[53, 21\]",
    ),
    "quantized tensor": (
        tensor_changed(FC, lambda t: t.to(torch.int8)),
        f"tensor '{FC}' is stored as I8; need floating-point weights .*quantized checkpoints are not read",
    ),
    "NaN": (tensor_changed(FC, with_value(float("nan"))), f"tensor '{FC}' holds NaN or infinite values"),
    "infinity": (tensor_changed("transformer.wte.weight", with_value(float("-inf"))), "'transformer.wte.weight' holds"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints_are_refused_with_a_sentence(case, write_checkpoint):
    folder, _ = write_checkpoint("gpt_neo")
    spoil, sentence = BAD[case]
    spoil(folder)
    with pytest.raises(InputError, match=sentence) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value) or case == "infinity"


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("gpt_neox", {"rotary_pct": 0.4}, "5 rotary dimensions a head are not supported, only even numbers"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias false is not supported"),
        ("gpt_neox", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "type 'linear' is not supported"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention true is not supported"),
    ],
)
def test_settings_that_would_compute_something_else_are_refused(family, changes, sentence, write_checkpoint):
    folder, _ = write_checkpoint(family)
    settings = json.loads((folder / "config.json").read_text())
    if "rotary_pct" in changes or "rope_scaling" in changes:
        del settings["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(settings | changes))
    with pytest.raises(InputError, match=sentence):
        load_model(folder)


def test_what_is_no_name_is_refused():
    for wrong in (None, {}, "", 3):
        with pytest.raises(InputError, match="as name; need 'bundled', a folder or a hub name such as"):
            inspect.unwrap(load_model)(wrong)


def test_paths_that_lead_nowhere_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder; need a folder with config\.json"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"is a file; need the folder it lies in"):
        load_model(tmp_path / "file")


def test_a_hub_name_without_network_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError,
        match="'EleutherAI/gpt-neo-125m' is not a folder, the local cache, .*, does not have it, and the hub cannot be "
        r"reached \(HF_HUB_OFFLINE is set\); connect to the network",
    ) as caught:
        load_model("EleutherAI/gpt-neo-125m")
    # What the hub's libraries say on the way, hundreds of lines, is left out.
    assert len("".join(traceback.format_exception(caught.value)).splitlines()) < 60
    assert caught.value.__suppress_context__


def test_a_name_the_hub_cannot_have_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match="'two words' is neither a folder nor a name that the hub could have; .*spelling"
    ):
        load_model("two words")


def test_a_hub_name_loads_the_downloaded_snapshot(monkeypatch, tmp_path, write_checkpoint):
    folder, reference = write_checkpoint("gpt_neo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mechmem.model.hub.snapshot_download", lambda *_, **__: str(folder))
    model = load_model("someone/something")
    assert differences(model, reference)[0] < 2e-5 and provenance(model).name == "someone/something"


def test_an_unknown_processing_is_refused():
    # Without the annotations' checks that the tests switch on, as a user meets it.
    with pytest.raises(InputError, match="got processing 'melted'; need one of raw, folded"):
        inspect.unwrap(load_model)("bundled", processing="melted")  # pyright: ignore[reportArgumentType]


# Size


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory):
    """GPT-Neo 125M's shape with random weights: the folder of all 12 layers, and one of 6."""
    from transformers import GPTNeoConfig

    folders = {}
    for layers in (6, 12):
        config = GPTNeoConfig(
            hidden_size=768, num_layers=layers, num_heads=12, attention_types=[[["global", "local"], layers // 2]]
        )
        folders[layers] = tmp_path_factory.mktemp(f"layers{layers}")
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[layers])
    return folders


PEAK = """
import re, sys, warnings
from pathlib import Path
import torch
from mechmem.model.load import load_model
def memory(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
warnings.simplefilter("ignore")
Path("/proc/self/clear_refs").write_text("5")  # the peak so far, reached by imports, is forgotten
before = memory("VmRSS")
load_model(sys.argv[1], processing=sys.argv[2], device="cpu")
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux reports it")
@pytest.mark.parametrize("processing", ["raw", "folded"])
def test_loading_takes_at_most_2_2_times_the_checkpoint(processing, large_folder):
    """Of 6 layers, where embedding and unembedding, which a tied checkpoint stores once, are nearly half."""
    folder = large_folder[6]
    command = [sys.executable, "-c", PEAK, str(folder), processing]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    size = (folder / "model.safetensors").stat().st_size
    assert 1.4 < peak / size < 2.2


def test_the_125m_shape_agrees_beyond_its_local_window(large_folder):
    reference = AutoModelForCausalLM.from_pretrained(large_folder[12], local_files_only=True).eval()
    ids = torch.randint(0, 50257, (1, 300), generator=torch.Generator().manual_seed(3))
    model = load_model(large_folder[12], device="cpu")
    with torch.no_grad():
        assert float((model(ids) - reference(ids).logits).abs().max()) < 1e-4
        for block in model.blocks:
            block.attn.cfg.window_size = 255
        assert float((model(ids) - reference(ids).logits).abs().max()) > 1e-4
