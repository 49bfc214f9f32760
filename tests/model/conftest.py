"""Random checkpoints of each family, written to folders as transformers writes them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPTNeoConfig, GPTNeoXConfig

# Sizes differ from one another wherever the family allows it, so that no axis passes for another.
CONFIGS = {
    "gpt_neo": lambda **changes: GPTNeoConfig(
        **{
            "vocab_size": 61,
            "max_position_embeddings": 47,
            "hidden_size": 21,
            "num_layers": 4,
            "num_heads": 3,
            "intermediate_size": 53,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
            "layer_norm_epsilon": 3e-4,
        }
        | changes
    ),
    "gpt_neox": lambda **changes: GPTNeoXConfig(
        **{
            "vocab_size": 128,
            "max_position_embeddings": 47,
            "hidden_size": 65,
            "num_hidden_layers": 3,
            "num_attention_heads": 5,
            "intermediate_size": 53,
            "rotary_pct": 0.5,  # of 13 dimensions a head: 6, where rounding to the nearest gives 7 or 6
            "rotary_emb_base": 500,
            "layer_norm_eps": 3e-4,
        }
        | changes
    ),
    "gpt2": lambda **changes: GPT2Config(
        **{
            "vocab_size": 61,
            "n_positions": 47,
            "n_embd": 21,
            "n_layer": 4,
            "n_head": 3,
            "n_inner": 53,
            "layer_norm_epsilon": 3e-4,
        }
        | changes
    ),
}


def random_reference(family: str, **changes) -> transformers.PreTrainedModel:
    """A random transformers model with weights large enough to tell tokens apart, biases and norms included."""
    settings = {"initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None} | changes
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](**settings)).eval()
        for name, parameter in model.named_parameters():
            # Fresh biases are zero and fresh norms one: a program that forgot them would pass.
            if parameter.ndim == 1:
                assert name.endswith(("bias", "weight"))
                parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


@pytest.fixture
def write_checkpoint(tmp_path) -> Callable:
    """(family, folder name, **configuration changes) -> the folder, and the transformers model that lies in it."""

    def write(family: str, name: str = "model", shard: str = "5GB", **changes):
        reference = random_reference(family, **changes)
        reference.save_pretrained(tmp_path / name, max_shard_size=shard)
        return tmp_path / name, reference

    return write


def small_tokenizer(vocabulary: int) -> ByteLevelBPETokenizer:
    tokenizer = ByteLevelBPETokenizer()
    text = "the boat left the harbour before the bakery opened and after the school bell rang twice " * 3
    tokenizer.train_from_iterator(
        [text + text.upper() + text.title()], vocab_size=vocabulary, special_tokens=["<|endoftext|>"], min_frequency=1
    )
    assert tokenizer.get_vocab_size() == vocabulary
    return tokenizer


@pytest.fixture
def write_tokenizer() -> Callable[[Path, int], None]:
    """(folder, vocabulary) -> `tokenizer.json` in the folder."""
    return lambda folder, vocabulary: small_tokenizer(vocabulary).save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A small checkpoint of each family."""
    found = {}
    for family in CONFIGS:
        found[family] = tmp_path_factory.mktemp(family)
        random_reference(family).save_pretrained(found[family])
    return found


@pytest.fixture
def changed(folders, tmp_path) -> Callable[..., Path]:
    """(family, **changes) -> a folder with the family's weights and a changed config.json."""

    def make(family: str, **changes: Any) -> Path:
        target = tmp_path / "changed"
        target.mkdir(exist_ok=True)
        config = json.loads((folders[family] / "config.json").read_text()) | changes
        (target / "config.json").write_text(json.dumps(config))
        if not (target / "model.safetensors").exists():
            os.link(folders[family] / "model.safetensors", target / "model.safetensors")
        return target

    return make
