"""The texts that effects are about: tokens of both sides of each pair, and which paragraphs of a result are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.load import HookedTransformer
from mechmem.show.texts.coloured_text import tokenizer_for
from mechmem.show.token_labels import shortened, text_labels


@dataclass(frozen=True, eq=False)
class PairText:
    """One paragraph, and the one that it was compared with.

    Attributes:
        title: which paragraph.
        clean, corrupt: a label for each token; corrupt None: unknown.
        differs: [pos], where both have other tokens; None: unknown.
        begins: position at which the continuation begins; None: unknown.
    """

    title: str
    clean: list[str]
    corrupt: list[str] | None
    differs: np.ndarray | None
    begins: int | None


@dataclass(frozen=True)
class Shown:
    """Which paragraphs of a result are shown.

    Attributes:
        rows: their places in the result; None: it has no dimension paragraph.
        texts: of each row, or of the one paragraph of a result without; None: unknown.
        titles: of each row.
        begins: position at which continuations begin; None: unknown.
    """

    rows: list[int] | None
    texts: list[PairText] | None
    titles: list[str]
    begins: int | None


def tokenizer_of(model: object, paragraphs: Paragraphs | None) -> Any:
    """The model's tokenizer, or one of the paragraphs' vocabulary that this process has met; None: neither."""
    if isinstance(model, HookedTransformer):
        return model.tokenizer
    return None if paragraphs is None else tokenizer_for(paragraphs, None)


def shown_of(
    effect: xr.DataArray | xr.Dataset, paragraphs: Paragraphs | None, corrupt: Paragraphs | None, tokenizer: Any
) -> Shown:
    """Which paragraphs are shown, and their texts.

    Raises:
        InputError: paragraphs that the result is not about, or a corrupt side of another shape.
    """
    values = effect.effect if isinstance(effect, xr.Dataset) else effect
    if corrupt is not None:
        _check_corrupt(paragraphs, corrupt)
    begins = effect.attrs.get("prefix_len")
    begins = paragraphs.prefix_len if paragraphs is not None else None if begins is None else int(begins)
    if "paragraph" not in values.dims:
        return _of_mean(values, paragraphs, corrupt, tokenizer, begins)
    ids = values.paragraph.values.tolist() if "paragraph" in values.coords else list(range(values.sizes["paragraph"]))
    rows = list(range(len(ids))) if paragraphs is None else _rows(ids, paragraphs)
    texts = None
    if paragraphs is not None:
        check_length(values, paragraphs)
        texts = [pair_text(paragraphs, corrupt, row, tokenizer) for row in range(len(rows))]
    elif isinstance(effect, xr.Dataset) and "clean_token" in effect:
        texts = [_stored(effect.isel(paragraph=row), row, tokenizer, begins) for row in rows]
    titles = [str(ids[row]) for row in rows] if texts is None else [text.title for text in texts]
    return Shown(rows, texts, titles, begins)


def pair_text(paragraphs: Paragraphs, corrupt: Paragraphs | None, row: int, tokenizer: Any) -> PairText:
    """The text of one paragraph, and of the one beside it."""
    tokens = paragraphs.tokens[row].tolist()
    clean = text_labels(tokenizer, tokens)
    other, differs = None, None
    if corrupt is not None:
        other = text_labels(tokenizer, corrupt.tokens[row].tolist())
        differs = (paragraphs.tokens[row] != corrupt.tokens[row]).cpu().numpy()
    return PairText(_title(row, clean), clean, other, differs, paragraphs.prefix_len)


def check_length(values: xr.DataArray, paragraphs: Paragraphs) -> None:
    """Refuse paragraphs that are shorter than the positions of a result.

    Raises:
        InputError: as above.
    """
    if "pos" not in values.dims:
        return
    places = values.pos.values if "pos" in values.coords else np.arange(values.sizes["pos"])
    length = paragraphs.tokens.shape[1]
    if len(places) and int(places.max()) >= length:
        raise InputError(
            f"got paragraphs of {length} tokens for positions up to {int(places.max())}; need those that were measured"
        )


def _of_mean(
    values: xr.DataArray, paragraphs: Paragraphs | None, corrupt: Paragraphs | None, tokenizer: Any, begins: int | None
) -> Shown:
    if paragraphs is None:
        return Shown(None, None, [], begins)
    check_length(values, paragraphs)
    pairs = values.attrs.get("pairs", values.attrs.get("paragraphs"))
    if pairs is not None and int(pairs) != len(paragraphs):
        raise InputError(
            f"got {len(paragraphs)} paragraphs for the mean over {int(pairs)}; need those that were measured, or a "
            "result with average=False, which is shown paragraph by paragraph"
        )
    # The mean over several texts has positions and no tokens.
    texts = [pair_text(paragraphs, corrupt, 0, tokenizer)] if len(paragraphs) == 1 else None
    return Shown(None, texts, [], begins)


def _rows(ids: Sequence[Any], paragraphs: Paragraphs) -> list[int]:
    place = {identity: row for row, identity in enumerate(ids)}
    wanted = paragraphs.ids.tolist()
    missing = [identity for identity in wanted if identity not in place]
    if missing:
        raise InputError(
            f"got paragraphs with the ids {missing[:3]}, which the effect does not have; need those that were measured"
        )
    return [place[identity] for identity in wanted]


def _check_corrupt(paragraphs: Paragraphs | None, corrupt: Paragraphs) -> None:
    if paragraphs is None:
        raise InputError("got corrupt and no paragraphs; need both sides: show.effects(effect, clean, corrupt=corrupt)")
    if corrupt.tokens.shape != paragraphs.tokens.shape:
        raise InputError(
            f"got paragraphs {list(paragraphs.tokens.shape)} and corrupt {list(corrupt.tokens.shape)}; need the two "
            "sides of the same pairs"
        )


def _stored(pair: xr.Dataset, row: int, tokenizer: Any, begins: int | None) -> PairText:
    """The text of a pair that its result holds."""
    labels = []
    for side in ("clean", "corrupt"):
        ids, texts = pair[f"{side}_token"].values.tolist(), pair[f"{side}_text"].values.tolist()
        bare = all(str(text) == str(token) for text, token in zip(texts, ids, strict=True))
        if tokenizer is not None or bare:
            labels.append(text_labels(tokenizer, ids))
        else:
            labels.append([shortened(str(text)) or "∅" for text in texts])
    differs = pair.clean_token.values != pair.corrupt_token.values
    return PairText(_title(row, labels[0]), labels[0], labels[1], differs, begins)


def _title(row: int, labels: list[str]) -> str:
    """Which paragraph: its place, and how it begins."""
    return f"{row}: {shortened(''.join(labels[:20]).strip())}"
