"""The tensors of a checkpoint folder, read one at a time and checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from mechmem.data.errors import InputError
from mechmem.model.architectures import Converter
from mechmem.model.stored_tensors import StoredTensor

FLOATING = {"F64", "F32", "F16", "BF16"}
# Masks and rotary frequencies that older checkpoints carry beside the weights.
BUFFERS = re.compile(r"(^|\.)((attn|attention)\.(bias|masked_bias)|rotary_emb\.inv_freq)$")
# Names that wrappers put before every tensor's own -> what they are.
WRAPPERS = {
    "module.": "torch's DataParallel or DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "torch's FSDP",
    "base_model.model.": "PEFT",
    "model.": "a training class that holds the model as `model`",
}


class Checkpoint:
    """The tensors of a folder's safetensors files, one file or several, under the names transformers uses today.

    Opening checks that every tensor is there with its shape and that nothing is left over; no tensor is read.

    Attributes:
        folder: where it lies.
        names: every name -> the name it is stored under. Tied names share one.

    Raises:
        InputError: missing, surplus or misshapen tensors.
    """

    def __init__(
        self, folder: Path, config: PreTrainedConfig, converter: Converter, stored: Mapping[str, StoredTensor]
    ):
        self.folder = folder
        self._digests: dict[str, str] = {}
        self._stored = stored
        shapes = {**converter.outer}
        for layer in range(config.num_hidden_layers):
            shapes |= {full: converter.layer[short] for full, short in converter.layer_names(layer).items()}
        aliases = _aliases(converter, bool(config.tie_word_embeddings))
        self.names = {name: next((a for a in aliases(name) if a in stored), "") for name in shapes}
        self._check(shapes)

    def read(self, name: str) -> Float[Tensor, " ..."]:
        """One tensor as float32, in memory of its own.

        Raises:
            InputError: a weight is NaN or infinite, or float32 cannot hold it.
        """
        stored = self.names[name]
        file = self._stored[stored].file
        # Opened anew for every tensor: pages of an open file count as this process's memory.
        with safe_open(file, framework="pt") as opened:
            tensor = opened.get_tensor(stored)
        if stored not in self._digests:
            description = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
            self._digests[stored] = hashlib.sha256(
                description + hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy()).digest()
            ).hexdigest()
        # A copy even where nothing changes: the tensor may still be the file's own pages.
        read = tensor.to(torch.float32, copy=True)
        if not all_finite(read):
            raise InputError(f"{file}: tensor '{stored}' {_not_finite(tensor)}")
        return read

    def weight_hash(self) -> str:
        """16 hexadecimal digits over names, types, shapes and bytes of all tensors; every one has been read before.

        It does not depend on how tensors are divided among files, nor on anything else in the folder.
        """
        lines = (f"{name} {self._digests[stored]}" for name, stored in sorted(self.names.items()))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def _check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        missing = [name for name, stored in self.names.items() if not stored]
        used = set(self.names.values())
        surplus = [name for name in self._stored if name not in used and not BUFFERS.search(name)]
        if missing:
            raise InputError(
                f"{self.folder}: {len(missing):,} tensors are missing, the first is '{missing[0]}'; need all "
                f"{len(self.names):,} that config.json describes: {self._advice(surplus)}"
            )
        if surplus:
            raise InputError(
                f"{self.folder}: {len(surplus):,} tensors have no place in the model that config.json describes, the "
                f"first is '{surplus[0]}'; need weights and configuration of one model: save both again"
            )
        for name, stored in self.names.items():
            _check_stored(stored, self._stored[stored], shapes[name])

    def _advice(self, surplus: list[str]) -> str:
        """What to do about missing tensors, from names that are there instead."""
        if not surplus:
            return "save the whole model again"
        prefix = ""
        # Wrappers may lie in one another.
        while found := next((p for p in WRAPPERS if all(name.startswith(prefix + p) for name in surplus)), ""):
            prefix += found
        if not prefix:
            return f"found {len(surplus):,} others, the first is '{surplus[0]}': save the whole model again"
        return (
            f"found {len(surplus):,} whose names begin with '{prefix}', the first is '{surplus[0]}': "
            f"{WRAPPERS[next(p for p in WRAPPERS if prefix.startswith(p))]} put this before the model's own names; "
            "call save_pretrained on the model inside it, or rename the tensors in the file"
        )


def all_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; nothing of the tensor's size is allocated."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _not_finite(tensor: Tensor) -> str:
    if all_finite(tensor):
        return (
            f"holds {float(tensor.double().abs().max()):.1e}, which float32 cannot hold; need weights up to 3.4e38 in "
            "size: the training or the conversion that wrote it went wrong, take an earlier checkpoint"
        )
    return (
        "holds NaN or infinite values; need finite weights: the training or the conversion that wrote it went wrong, "
        "take an earlier checkpoint"
    )


def _aliases(converter: Converter, tied: bool) -> Callable[[str], list[str]]:
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


def _check_stored(name: str, stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise InputError(
            f"{stored.file}: tensor '{name}' has shape {list(stored.shape)}; config.json describes {list(shape)}: take "
            "weights and configuration of one model"
        )
    if stored.dtype not in FLOATING:
        raise InputError(
            f"{stored.file}: tensor '{name}' is stored as {stored.dtype}; need floating-point weights "
            f"({', '.join(sorted(FLOATING))}): quantized checkpoints are not read, take the original"
        )


def first_line(error: Exception) -> str:
    """An error's kind and the beginning of what it says, for a sentence of our own."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error).strip() else repr(error)
