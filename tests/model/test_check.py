import json
import math
import socket

import pytest
import torch
import xarray as xr

import mechmem.model.check as check
from mechmem.data.errors import InputError
from mechmem.model.check import check_model
from mechmem.model.load import load_model
from mechmem.model.sample_text import TEXT

pytestmark = pytest.mark.filterwarnings("ignore:.* has no tokenizer:UserWarning")


@pytest.mark.parametrize("family", ["gpt_neo", "gpt_neox", "gpt2"])
def test_models_of_every_family_pass(family, write_checkpoint):
    folder, _ = write_checkpoint(family, max_position_embeddings=130)
    result = check_model(folder)
    assert dict(result.sizes) == {"processing": 2, "text": 2}
    assert result.positions.to_dict()["data"] == [100, 130]
    assert bool(result.ok.all()), result
    raw, folded = result.sel(processing="raw"), result.sel(processing="folded")
    assert float(raw.logit_difference.max()) < 2e-5 and float(raw.gradient_difference.max()) < 1e-5
    # By design: other logits, and no gradient to compare.
    assert float(folded.logit_difference.min()) > 1e-2 and bool(folded.gradient_difference.isnull().all())
    assert result.attrs["tokens"].startswith("random ids") and result.attrs["verdict"].startswith(
        "equal to transformers"
    )


@pytest.mark.parametrize(("setting", "value"), [("window_size", 101), ("window_size", 119)])
def test_a_wrong_local_window_shows_in_the_text_that_is_longer(setting, value, write_checkpoint, monkeypatch):
    folder, _ = write_checkpoint("gpt_neo", max_position_embeddings=130, window_size=120)

    def wrong(*arguments, **options):
        model = load_model(*arguments, **options)
        for block in model.blocks:
            setattr(block.attn.cfg, setting, value)
        return model

    monkeypatch.setattr(check, "load_model", wrong)
    result = check_model(folder)
    assert result.ok.sel(text="short").values.tolist() == [True, True]
    assert result.ok.sel(text="long").values.tolist() == [False, False]
    assert result.attrs["verdict"].startswith("DIFFERS from transformers")


@pytest.mark.parametrize("name", ["embed.W_E", "unembed.W_U", "blocks.2.attn.W_K", "blocks.1.mlp.b_in", "ln_final.w"])
def test_a_wrong_gradient_shows_although_the_logits_are_right(name, write_checkpoint, monkeypatch):
    folder, _ = write_checkpoint("gpt_neo")

    def wrong(*arguments, **options):
        model = load_model(*arguments, **options)
        if options.get("processing") != "folded":
            model.get_parameter(name).register_hook(lambda gradient: 1.1 * gradient)
        return model

    monkeypatch.setattr(check, "load_model", wrong)
    raw = check_model(folder).sel(processing="raw")
    assert raw.ok.values.tolist() == [False, False]
    assert float(raw.logit_difference.max()) < 2e-5 and float(raw.gradient_difference.max()) > 1e-4


def test_a_moved_weight_shows_in_folded_log_probabilities(write_checkpoint, monkeypatch):
    folder, _ = write_checkpoint("gpt_neo")

    def wrong(*arguments, **options):
        model = load_model(*arguments, **options)
        if options.get("processing") == "folded":
            model.get_parameter("blocks.3.mlp.W_in").data[4, 5] += 0.1
        return model

    monkeypatch.setattr(check, "load_model", wrong)
    result = check_model(folder)
    assert result.ok.values.tolist() == [[True, True], [False, False]]


def test_differences_are_those_of_the_logits_themselves(write_checkpoint):
    """Theorem: scaling the unembedding by 1 + e moves logits by e times themselves."""
    folder, reference = write_checkpoint("gpt_neo")
    model = load_model(folder)
    model.unembed.W_U.data *= 1.01
    ids = torch.randint(0, 61, (3, 40))
    found = check._compare(model, reference, ids)
    with torch.no_grad():
        logits = reference(ids).logits
    assert math.isclose(found["logit_difference"], 0.01 * float(logits.abs().max()), rel_tol=1e-3)
    nll = [
        [-float(scored[p].double().log_softmax(-1)[row[p + 1]]) for p in range(39)]
        for scale in (1.01, 1)
        for scored, row in zip(logits * scale, ids, strict=True)
    ]
    expected = max(
        abs(a - b) for ours, theirs in zip(nll[:3], nll[3:], strict=True) for a, b in zip(ours, theirs, strict=True)
    )
    assert math.isclose(found["nll_difference"], expected, rel_tol=1e-3)


def test_text_is_used_where_there_is_a_tokenizer(write_checkpoint, write_tokenizer):
    assert len(TEXT.split()) > 500 and "<html" in TEXT and "def " in TEXT
    folder, _ = write_checkpoint("gpt_neo", vocab_size=283, max_position_embeddings=390)
    write_tokenizer(folder, 283)
    result = check_model(folder)
    assert result.attrs["tokens"] == "a text of several kinds" and result.positions.values.tolist() == [100, 384]
    assert bool(result.ok.all())


def test_given_tokens_are_strung_together_and_checked(write_checkpoint):
    folder, _ = write_checkpoint("gpt_neo")
    result = check_model(folder, tokens=torch.randint(0, 61, (5, 7)))
    assert result.attrs["tokens"] == "given" and result.positions.values.tolist() == [35, 35]
    with pytest.raises(InputError, match="got 6 tokens with ids from 61 to 61; need at least 2, with ids from 0 to 60"):
        check_model(folder, tokens=torch.full((2, 3), 61))
    with pytest.raises(InputError, match="got 1 tokens with ids from 0 to 0"):
        check_model(folder, tokens=torch.zeros(1, 1, dtype=torch.long))


def test_the_bundled_model_is_checked_on_its_paragraphs():
    if not (check.PARAGRAPHS_FILE.exists() and (check.PARAGRAPHS_FILE.parent / "bundled/config.json").exists()):
        pytest.skip("the bundled model and its paragraphs are not built yet")
    result = check_model("bundled")
    assert result.attrs["tokens"] == "bundled paragraphs" and bool(result.ok.all()), result


def test_the_result_is_saved_as_netcdf(write_checkpoint, tmp_path):
    folder, _ = write_checkpoint("gpt_neo")
    result = check_model(folder)
    result.to_netcdf(tmp_path / "check.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "check.nc", engine="h5netcdf") as again:
        xr.testing.assert_equal(again.load(), result)


KERNELS = "someone/evil-attention"
EVIL = "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n"


@pytest.mark.parametrize("family", ["gpt_neo", "gpt_neox", "gpt2"])
def test_nothing_that_the_folder_names_is_fetched_or_run(family, write_checkpoint, monkeypatch):
    """transformers' loading by folder would follow each of these."""
    folder, _ = write_checkpoint(family)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        **dict.fromkeys(("attn_implementation", "_attn_implementation", "_attn_implementation_internal"), KERNELS),
        "experts_implementation": KERNELS,
        "fusion_config": {"patch_embeddings": True},
        "transformers_weights": "evil.bin",
        "trust_remote_code": True,
        "_name_or_path": "someone/else",
        "tokenizer_class": "EvilTokenizer",
    }
    (folder / "config.json").write_text(json.dumps(config))
    others = {
        "adapter_config.json": {"base_model_name_or_path": "someone/else", "peft_type": "LORA"},
        "generation_config.json": {"custom_generate": "someone/else", "cache_implementation": "evil"},
        "quantize_config.json": {"bits": 4},
    }
    for name, content in others.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "custom_generate").mkdir()
    for name in ("custom_generate/generate.py", "modeling_gpt_neo.py", "configuration_gpt_neo.py"):
        (folder / name).write_text(EVIL)
    (folder / "evil.bin").write_bytes(b"not even a pickle")
    built = []
    reference = check._reference
    monkeypatch.setattr(check, "_reference", lambda *given: built.append(reference(*given)) or built[0])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    result = check_model(folder)
    assert bool(result.ok.all()), result
    assert built[0].config._attn_implementation == "eager"
    assert not list(folder.rglob("*.ran"))


def test_the_reference_of_a_quantized_checkpoint_is_refused(write_checkpoint):
    folder, _ = write_checkpoint("gpt_neo")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "someone/evil", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="quantization_config is set; the weights are quantized"):
        check_model(folder)
