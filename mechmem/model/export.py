"""A GPT-Neo, GPT-2 or GPT-NeoX HookedTransformer back to a folder that transformers loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedConfig

from mechmem.data.errors import InputError
from mechmem.data.files import check_output, foreign_entries, replacing
from mechmem.model.architectures import ARCHITECTURES, hooked_settings
from mechmem.model.checkpoint import all_finite
from mechmem.model.config_file import read_settings
from mechmem.model.exported_families import EXPORTED
from mechmem.model.hooks import refuse_hooks
from mechmem.model.load import HookedTransformer, Provenance
from mechmem.model.public import public
from mechmem.model.tokenizer_files import TOKENIZER_FILES
from mechmem.model.vocabulary import vocabulary


@public("refuse")
def export(model: HookedTransformer, folder: str | Path, *, card: str | None = None) -> None:
    """Write `model.safetensors` (float32), `config.json` and the tokenizer's files, whole or not at all.

    transformers' AutoModelForCausalLM and `load_model` read the folder and give the same logits. Tensors that an edit
    left alone are bit for bit those of the source as float32, if the model was loaded as float32. Embedding and
    unembedding stay tied only while they are equal; otherwise both are written and `tie_word_embeddings` is false. An
    embedding that is padded beyond the tokenizer is written with its padding.

    Args:
        model: of one of the three families with raw weights, such as `load_model` gives and the interventions return.
        folder: where to write; new or empty.
        card: text of a `README.md` beside the weights, such as `edit_card` writes.

    Raises:
        InputError: hooks on the model, another family, folded weights, a bias that the family does not have, a weight
            that is NaN or infinite, or a folder that has files in it or cannot be written. `check_exportable` says so
            before an edit. Nothing was written then.
    """
    check_exportable(model, folder)
    source = _source(model)
    family = EXPORTED[str(model.cfg.original_architecture)]
    tensors = family.tensors(model)
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise InputError(
                f"'{name}' holds NaN or infinite weights, or some that float32 cannot hold; need finite ones: the edit "
                "diverged, redo it"
            )
    config = _config(model, source, tied=family.unembedding not in tensors)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    # Where a link leads, its target is replaced and not the link.
    with replacing(Path(folder).resolve(), size=size) as temporary:
        temporary.mkdir()
        # transformers refuses files without this entry.
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(temporary)
        _write_tokenizer(model, source, temporary)
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8")


def check_exportable(model: HookedTransformer, folder: str | Path | None = None) -> None:
    """Refuse what `export` would refuse because of the model's kind, its hooks or the folder, before any work is done.

    Args:
        model: what is to be edited and then exported.
        folder: where it is to be written; None: not known yet.

    Raises:
        InputError: as `export`, except for NaN and infinite weights; the sentence says what to change.
    """
    refuse_hooks(model, "export")
    source = _source(model)
    family = EXPORTED.get(str(model.cfg.original_architecture))
    if family is None:
        raise InputError(
            f"the model's family is {model.cfg.original_architecture}; need one of {', '.join(EXPORTED)}, which can be "
            "exported: save other models as TransformerLens' state_dict"
        )
    if model.cfg.normalization_type != "LN" or (source is not None and source.processing != "raw"):
        raise InputError(
            "the weights are folded, which cannot be undone: LayerNorm's own weights are gone; need raw ones: load "
            "with processing='raw', edit and export that"
        )
    absent = ["unembed.b_U", *(f"blocks.{i}.{name}" for i in range(model.cfg.n_layers) for name in family.absent)]
    for name in absent:
        # Surplus ids have a bias here that keeps them from being chosen; it stays out of the checkpoint.
        parameter = model.get_parameter(name)
        if bool((parameter[: vocabulary(model)] if name == "unembed.b_U" else parameter).any()):
            raise InputError(
                f"'{name}' is not zero and {family.title} has no such bias, so transformers could not compute the "
                "same; leave this parameter out of the edit"
            )
    _check_same_computation(model, family.title, _config(model, source, tied=True))
    if folder is not None:
        check_target(folder)


def _check_same_computation(model: HookedTransformer, title: str, config: PreTrainedConfig) -> None:
    """Refuse settings of a model that was built by hand, if the family has no such setting or another value of it."""
    try:
        wanted = hooked_settings(config)
    except ValueError as error:
        raise InputError(f"{title} cannot hold this model: {error}; need a model as load_model gives") from None
    for name, value in wanted.items():
        if getattr(model.cfg, name) != value:
            raise InputError(
                f"the model's {name} is {getattr(model.cfg, name)} and transformers' {title} of the same sizes has "
                f"{value}; need a model as load_model gives"
            )


def check_target(folder: str | Path) -> None:
    """Refuse a folder that a model could not be written to, or that holds anything.

    Raises:
        InputError: files in it, a file in its place, or a place that cannot be written to.
    """
    check_output(Path(folder).absolute(), "folder")
    if Path(folder).resolve() == Path.cwd():
        # It is replaced as a whole, and a shell would be left in a folder that is gone.
        raise InputError(f"{folder}: is the folder you are in; need another one, new or empty")
    if Path(folder).is_dir() and (found := foreign_entries(Path(folder))):
        more = "" if len(found) == 1 else f" and {len(found) - 1} more"
        raise InputError(
            f"{folder}: exists and is not empty; it holds {found[0].name}{more}; need a new or empty folder: choose "
            "another, or move what is in it"
        )


def _source(model: HookedTransformer) -> Provenance | None:
    known = getattr(model, "mechmem_provenance", None)
    return known if isinstance(known, Provenance) else None


def _config(model: HookedTransformer, source: Provenance | None, *, tied: bool) -> PreTrainedConfig:
    """The source's configuration, with everything the model knows itself written anew."""
    written = EXPORTED[str(model.cfg.original_architecture)]
    settings: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    if source is not None and source.folder is not None and (source.folder / "config.json").is_file():
        family, found = read_settings(source.folder)
        settings = found if family == written.family else settings
    kept = {name: value for name, value in settings.items() if name not in written.replaced}
    architecture = ARCHITECTURES[written.family]
    return architecture.config_class.from_dict(
        kept
        | {
            "architectures": [architecture.causal_class],
            "dtype": "float32",
            "vocab_size": model.cfg.d_vocab,
            "tie_word_embeddings": tied,
        }
        | written.settings(model, settings)
    )


def _write_tokenizer(model: HookedTransformer, source: Provenance | None, folder: Path) -> None:
    if source is not None and source.folder is not None and source.folder.is_dir():
        for name in TOKENIZER_FILES:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, folder / name)
    elif model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
