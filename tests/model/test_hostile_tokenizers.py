"""Tokenizer files that a stranger wrote: each is read as tokens alone, or refused in one sentence."""

import json
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechmem.model.load import load_model
from tests.model.hostile import FEW, JSON, loads_or_says_why, refused


@pytest.fixture
def texts(write_checkpoint, write_tokenizer) -> Path:
    folder, _ = write_checkpoint("gpt_neo", "texts", vocab_size=283)
    write_tokenizer(folder, 283)
    return folder


TOKENIZER_SETTINGS = [
    {"tokenizer_class": 3}, {"tokenizer_class": ["GPT2Tokenizer"]}, {"eos_token": 7}, {"eos_token": {"content": 3}},
    {"eos_token": {"a": "b"}}, {"eos_token": {"content": "a", "option": True}},
    {"add_prefix_space": "yes"}, {"added_tokens_decoder": []},
    {"added_tokens_decoder": {"x": {"content": "a"}}}, {"added_tokens_decoder": {"-1": {"content": "a"}}},
    {"added_tokens_decoder": {"99999999999999": {"content": "a"}}}, {"added_tokens_decoder": {"1": 3}},
    {"extra_special_tokens": 3}, {"additional_special_tokens": [3]}, {"auto_map": {"AutoTokenizer": ["evil.E", None]}},
    {"auto_map": ["evil.E", None]},
]  # fmt: skip


@pytest.mark.parametrize("wrong", TOKENIZER_SETTINGS)
@pytest.mark.parametrize("kind", ["GPT2Tokenizer", None])
def test_odd_tokenizer_settings_are_refused(wrong, kind, texts):
    (texts / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind} | wrong))
    refused(texts, "tokenizer")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b'{"model": {"type": "BPE"}}', b'{"a":3}'],
)
def test_tokenizer_files_that_are_none_are_refused(name, content, texts):
    (texts / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (texts / name).write_bytes(content)
    if name == "tokenizer_config.json" and content.startswith(b"{") and content.endswith(b"}"):
        load_model(texts)  # settings of other programs are left out
    else:
        refused(texts, "tokenizer|special_tokens_map")


@pytest.mark.parametrize("wrong", [283, 10**6, 2**31, 2**32 - 1, 10**12, 10**30, -1, 1.5, True, None, "7", [7]])
def test_ids_that_the_model_does_not_have_are_refused_before_they_are_counted(wrong, texts):
    """The tokenizers library walks from 0 to the largest id, and aborts the process when memory ends."""
    content = json.loads((texts / "tokenizer.json").read_text())
    whole = (texts / "tokenizer.json").read_bytes()
    sentence = "gives ids up to .* and the model's vocabulary has 283|as an id; need whole numbers|of another kind"

    def both(name: str, changed: object) -> None:
        for kind in ("GPT2Tokenizer", "PreTrainedTokenizerFast", None):
            (texts / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
            (texts / name).write_text(json.dumps(changed))
            refused(texts, sentence)

    words = content["model"]["vocab"]
    both("tokenizer.json", content | {"model": content["model"] | {"vocab": words | {"the": wrong}}})
    both("tokenizer.json", content | {"added_tokens": [content["added_tokens"][0] | {"id": wrong}]})
    (texts / "tokenizer.json").write_bytes(whole)
    both("added_tokens.json", {"<new>": wrong})
    (texts / "added_tokens.json").unlink()
    (texts / "tokenizer.json").unlink()
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    (texts / "merges.txt").write_text("\n".join(merges))
    both("vocab.json", words | {"the": wrong})


def test_what_tokenizer_settings_name_is_not_opened_fetched_or_run(texts, tmp_path, monkeypatch):
    expected = load_model(texts).to_tokens("the bakery opened").tolist()
    secret = tmp_path / "secret"
    secret.write_text("never read")
    for file in ("vocab_file", "tokenizer_file", "merges_file", "special_tokens_map_file", "gguf_file"):
        settings = {"tokenizer_class": "GPT2Tokenizer", file: str(secret), "name_or_path": "someone/else"}
        settings |= {"backend": "x", "init_inputs": ["x"], "vocab": str(secret), "fast_tokenizer_files": [str(secret)]}
        settings |= {"trust_remote_code": True, "local_files_only": False, "chat_template": "{{ evil }}"}
        (texts / "tokenizer_config.json").write_text(json.dumps(settings))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("the network was asked"))
        assert load_model(texts).to_tokens("the bakery opened").tolist() == expected


@FEW
@given(data=st.data())
def test_mutated_tokenizers_load_or_say_why(data, texts):
    whole = (texts.parent / "whole.json", texts / "tokenizer.json")
    if not whole[0].exists():
        whole[0].write_bytes(whole[1].read_bytes())
    content = json.loads(whole[0].read_text())
    part = data.draw(st.sampled_from([(), ("model",), ("post_processor",), ("decoder",), ("pre_tokenizer",)]))
    inner = content
    for key in part:
        inner = inner[key] if isinstance(inner.get(key), dict) else inner
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(JSON)
    whole[1].write_text(json.dumps(content))
    kind = data.draw(st.sampled_from(["GPT2Tokenizer", "GPTNeoXTokenizerFast", "TokenizersBackend", "T5Tokenizer"]))
    (texts / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    loads_or_says_why(texts)
