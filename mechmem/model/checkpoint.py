"""A checkpoint folder: configuration, tensors read one at a time and checked, tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from mechmem.data.assets import MODEL_FOLDER
from mechmem.data.errors import InputError
from mechmem.model.architectures import ARCHITECTURES, Converter

FLOATING = {"F64", "F32", "F16", "BF16"}
# Masks and rotary frequencies that older checkpoints carry beside the weights.
BUFFERS = re.compile(r"(^|\.)((attn|attention)\.(bias|masked_bias)|rotary_emb\.inv_freq)$")
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer*", "vocab.json", "merges.txt"]
HUB_FILES += ["special_tokens_map.json", "added_tokens.json"]


def find_folder(name: str) -> Path:
    """The folder that "bundled", a folder's path or a hub name stands for; a hub name is downloaded if it must be.

    Raises:
        InputError: no such folder, or the hub has no such model, or it cannot be reached.
    """
    if name == "bundled":
        return MODEL_FOLDER
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{folder} is a file; need the folder it lies in, with config.json beside the weights")
    if folder.is_absolute() or name.startswith((".", "~")) or len(folder.parts) > 2:
        raise InputError(f"{folder}: no such folder; need a folder with config.json and model.safetensors")
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HFValidationError, HfHubHTTPError) as error:
        raise InputError(
            f"'{name}' is neither a folder nor a model that the hub gives access to ({first_line(error)}); need "
            "'bundled', a folder or a hub name such as EleutherAI/gpt-neo-125m: check the spelling"
        ) from None
    except (LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"'{name}' is neither a folder nor in the local cache, and the hub cannot be reached "
            f"({first_line(error)}); connect to the network to download it once, or give a folder"
        ) from None


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a supported family from `config.json`.

    Raises:
        InputError: no folder, no or unreadable `config.json`, another family, or values that transformers refuses.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; need a folder that transformers' save_pretrained wrote, with config.json beside "
            "the weights"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error}); write or fetch it again") from None
    family = settings.get("model_type") if isinstance(settings, dict) else None
    if family not in ARCHITECTURES:
        raise InputError(
            f"{path}: model_type is {family!r}; supported are {', '.join(ARCHITECTURES)}: load a GPT-Neo, "
            "GPT-NeoX/Pythia or GPT-2 checkpoint"
        )
    try:
        return ARCHITECTURES[family].config_class.from_dict(settings)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise InputError(f"{path}: not a usable {family} configuration ({first_line(error)}); correct it") from None


class Checkpoint:
    """The tensors of a folder's safetensors files, one file or several, under the names transformers uses today.

    Opening checks that every tensor is there with its shape and that nothing is left over; no tensor is read.

    Attributes:
        folder: where it lies.
        names: every name -> the name it is stored under. Tied names share one.

    Raises:
        InputError: no safetensors, a damaged file, missing, surplus or misshapen tensors.
    """

    def __init__(self, folder: Path, config: PreTrainedConfig, converter: Converter):
        self.folder = folder
        self._digests: dict[str, str] = {}
        self._files = {name: file for file in _weight_files(folder) for name in _names_in(file)}
        shapes = {**converter.outer}
        for layer in range(config.num_hidden_layers):
            shapes |= {full: converter.layer[short] for full, short in converter.layer_names(layer).items()}
        aliases = _aliases(converter, bool(config.tie_word_embeddings))
        self.names = {name: next((a for a in aliases(name) if a in self._files), "") for name in shapes}
        self._check(shapes)

    def read(self, name: str) -> Float[Tensor, " ..."]:
        """One tensor as float32, in memory of its own.

        Raises:
            InputError: a weight is NaN or infinite.
        """
        stored = self.names[name]
        file = self._files[stored]
        # Opened anew for every tensor: pages of an open file count as this process's memory.
        with safe_open(file, framework="pt") as opened:
            tensor = opened.get_tensor(stored)
        if tensor.numel() and not bool(torch.stack(torch.aminmax(tensor)).isfinite().all()):
            raise InputError(
                f"{file}: tensor '{stored}' holds NaN or infinite values; need finite weights: the training or the "
                "conversion that wrote it went wrong, take an earlier checkpoint"
            )
        if stored not in self._digests:
            description = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
            self._digests[stored] = hashlib.sha256(
                description + hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy()).digest()
            ).hexdigest()
        # A copy even where nothing changes: the tensor may still be the file's own pages.
        return tensor.to(torch.float32, copy=True)

    def weight_hash(self) -> str:
        """16 hexadecimal digits over names, types, shapes and bytes of all tensors; every one has been read before.

        It does not depend on how tensors are divided among files, nor on anything else in the folder.
        """
        lines = (f"{name} {self._digests[stored]}" for name, stored in sorted(self.names.items()))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def _check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        missing = [name for name, stored in self.names.items() if not stored]
        if missing:
            raise InputError(
                f"{self.folder}: {len(missing)} tensors are missing, the first is '{missing[0]}'; need all "
                f"{len(self.names)} that config.json describes: save the whole model again"
            )
        surplus = [n for n in self._files if n not in set(self.names.values()) and not BUFFERS.search(n)]
        if surplus:
            raise InputError(
                f"{self.folder}: {len(surplus)} tensors have no place in the model that config.json describes, the "
                f"first is '{surplus[0]}'; need weights and configuration of one model: save both again"
            )
        for file in set(self._files.values()):
            with safe_open(file, framework="pt") as opened:
                for name, stored in self.names.items():
                    if self._files[stored] == file:
                        _check_slice(file, stored, opened.get_slice(stored), shapes[name])


def _aliases(converter: Converter, tied: bool) -> Any:
    """Names that a tensor may be stored under, best first."""
    body, embedding = converter.architecture.body, converter.architecture.inputs[0]

    def aliases(name: str) -> list[str]:
        names = [name, name.removeprefix(body)]
        if name == "lm_head.weight":
            names.append("embed_out.weight")  # what GPT-NeoX files call it
        if tied and name == "lm_head.weight":
            names += [embedding, embedding.removeprefix(body)]
        if tied and name == embedding:
            names += ["lm_head.weight", "embed_out.weight"]
        return names

    return aliases


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        found = (
            f"only {pickles[0].name}, a pickle, which can run code when opened and is refused" if pickles else "none"
        )
        raise InputError(
            f"{folder}: need weights in model.safetensors and found {found}. If they exist as a pickle from a source "
            "that you trust, load them with transformers in a place where nothing can be harmed and write them with "
            "save_pretrained(folder, safe_serialization=True)"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index}: not a readable index of safetensors files; fetch it again") from None
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise InputError(f"{index}: it lists '{name}', which is not in the folder; fetch the missing file")
    return [folder / name for name in names]


def _names_in(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file}: not a whole safetensors file ({error}; it has {file.stat().st_size} bytes), it may have "
            "been cut off: fetch or write it again"
        ) from None


def _check_slice(file: Path, name: str, stored: Any, shape: tuple[int, ...]) -> None:
    found = tuple(stored.get_shape())
    if found != shape:
        raise InputError(
            f"{file}: tensor '{name}' has shape {list(found)}; config.json describes {list(shape)}: take weights and "
            "configuration of one model"
        )
    if stored.get_dtype() not in FLOATING:
        raise InputError(
            f"{file}: tensor '{name}' is stored as {stored.get_dtype()}; need floating-point weights "
            f"({', '.join(sorted(FLOATING))}): quantized checkpoints are not read, take the original"
        )


def first_line(error: Exception) -> str:
    """An error's kind and the beginning of what it says, for a sentence of our own."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error).strip() else repr(error)
