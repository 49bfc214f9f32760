"""The text of a planted model, and the directions of its residual stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.truth.planted_settings import PlantedSettings

Direction = Float[Tensor, " d_model"]
# Counts: of the most frequent token, of the least frequent common token, and at most of a rare one (at least 1).
MOST, COMMON, RARE = 20_000, 60, 3
# Least margins: of attention score, rare over common tokens; of logits, the memorized token over any other.
SCORE_MARGIN, LOGIT_MARGIN = 18.0, 8.0


@dataclass(frozen=True)
class Text:
    """Paragraphs of a planted model: common tokens, and one rare token in each prefix.

    Attributes:
        memorized, other: token ids.
        counts: of each token in the imagined corpus; the last ids are the rare ones.
        rare: ids of the rare tokens, those of the memories first.
        triggers: position of each memory's rare token.
    """

    memorized: Int[Tensor, "paragraph pos"]
    other: Int[Tensor, "other_paragraph pos"]
    counts: Int[Tensor, " d_vocab"]
    rare: Int[np.ndarray, " rare"]
    triggers: Int[np.ndarray, " paragraph"]


def planted_text(settings: PlantedSettings, rng: np.random.Generator) -> Text:
    """Draw paragraphs with Zipf frequencies, without immediate repeats and with distinct first continuation tokens."""
    number = settings.memories + settings.others
    common = settings.d_vocab - number
    ranks = 1 + np.arange(common)
    counts = np.concatenate([COMMON + MOST / ranks, rng.integers(1, RARE + 1, number)]).astype(np.int64)
    length = settings.prefix_len + settings.continuation_len
    frequency = counts[:common] / counts[:common].sum()
    rows = rng.choice(common, (number, length), p=frequency)
    # Continuations start with distinct tokens.
    rows[:, settings.prefix_len] = rng.permutation(common)[:number]
    for place in range(1, length):
        while (same := rows[:, place] == rows[:, place - 1]).any():
            rows[same, place - (place == settings.prefix_len)] = rng.choice(common, int(same.sum()))
    rare = common + np.arange(number)
    triggers = rng.integers(0, settings.prefix_len - 1, number)
    rows[np.arange(number), triggers] = rare
    tokens = torch.from_numpy(rows)
    memories = settings.memories
    return Text(tokens[:memories], tokens[memories:], torch.from_numpy(counts), rare, triggers[:memories])


@dataclass(frozen=True)
class Directions:
    """Directions of the residual stream. Everything written is zero-sum, so that LayerNorm's mean is zero.

    Attributes:
        tokens: identity of each token, [d_vocab, d_model], length 1; the unembedding reads it.
        rarity: its rarity, 0 (most frequent) to 1 (count 0), on one direction.
        codes: code of each rare token, length 1; zero for others.
        positions: code of each position, [n_ctx, d_model], length 1.
        matches: the memories' codes as the head writes them, in the reserved part, [memory, d_model].
        constant: where `ln_1.bias` is 1.
        balance: two dimensions of opposite sign for the large constant.
        rarity_in: what a key reads; scaled so that the attention score separates rare from common tokens.
        code_in, code_out: from codes into a head, and from a head to the reserved part.
        read: 1 where the norms before attention and MLP let text through.
        token_part, junk_part: 1 on the dimensions of tokens' identities, and on those that nothing reads.
        sharpness: of the final norm.
        confusion: largest input sum of a neuron when code and position do not both match.
    """

    tokens: Float[Tensor, "d_vocab d_model"]
    rarity: Float[Tensor, "d_vocab d_model"]
    codes: Float[Tensor, "d_vocab d_model"]
    positions: Float[Tensor, "n_ctx d_model"]
    matches: Float[Tensor, "memory d_model"]
    constant: Direction
    balance: Direction
    rarity_in: Direction
    code_in: Float[Tensor, "d_model code"]
    code_out: Float[Tensor, "code d_model"]
    read: Direction
    token_part: Direction
    junk_part: Direction
    sharpness: float
    confusion: float


def planted_directions(settings: PlantedSettings, text: Text, rng: np.random.Generator) -> Directions:
    """Divide the residual stream into constant, rarity, codes, reserved, positions, junk, and tokens in the rest."""
    d_model, width = settings.d_model, min(settings.d_model // 8, settings.d_model // settings.n_heads)
    sizes = {"constant": 2, "rarity": 2, "code": width, "reserved": width, "position": 3 * d_model // 16}
    sizes["junk"] = d_model // 8
    sizes["token"] = d_model - sum(sizes.values())
    starts = dict(zip(sizes, np.cumsum([0, *list(sizes.values())[:-1]]).tolist(), strict=True))
    parts = {name: torch.arange(start, start + sizes[name]) for name, start in starts.items()}

    def placed(part: str, rows: Float[Tensor, "row size"]) -> Float[Tensor, "row d_model"]:
        result = torch.zeros(len(rows), d_model)
        result[:, parts[part]] = rows
        return result

    def ones(*names: str) -> Direction:
        return torch.zeros(d_model).index_fill(0, torch.cat([parts[name] for name in names]), 1.0)

    tokens, positions = (
        _codes(n, sizes[p], rng) for n, p in ((settings.d_vocab, "token"), (settings.n_ctx, "position"))
    )
    rare = _apart(len(text.rare), width, rng)
    codes = torch.zeros(settings.d_vocab, width)
    codes[text.rare] = rare
    logs = (text.counts.double() + 1).log()
    rarity = (1 - logs / logs.max()).float()
    pair = torch.tensor([1.0, -1.0])
    gap = float(rarity[text.rare].min() - np.delete(rarity.numpy(), text.rare).max())
    matched = rare[: settings.memories]
    confusion = 1 + max(_coherence(positions), float((rare @ matched.T).fill_diagonal_(-1).max()))
    crossed = 1 - _coherence(tokens)
    return Directions(
        tokens=placed("token", tokens),
        rarity=placed("rarity", rarity[:, None] * pair),
        codes=placed("code", codes),
        positions=placed("position", positions),
        matches=placed("reserved", matched),
        constant=ones("constant") * torch.arange(d_model).eq(int(parts["constant"][0])),
        balance=placed("constant", pair[None])[0],
        rarity_in=placed("rarity", pair[None])[0] * SCORE_MARGIN / gap / 2,
        code_in=placed("code", torch.eye(width)).T,
        code_out=placed("reserved", torch.eye(width)),
        read=ones("rarity", "code", "reserved", "position", "token"),
        token_part=ones("token"),
        junk_part=ones("junk"),
        sharpness=LOGIT_MARGIN / (3 * crossed),
        confusion=confusion,
    )


def _codes(count: int, size: int, rng: np.random.Generator) -> Float[Tensor, "row size"]:
    """Random directions of length 1 whose entries sum to zero."""
    rows = torch.from_numpy(rng.standard_normal((count, size))).float()
    rows -= rows.mean(-1, keepdim=True)
    return rows / rows.norm(dim=-1, keepdim=True)


def _apart(count: int, size: int, rng: np.random.Generator, tries: int = 64) -> Float[Tensor, "row size"]:
    """Codes far apart: each is the candidate with the lowest similarity to the codes before it."""
    chosen = _codes(1, size, rng)
    while len(chosen) < count:
        candidates = _codes(tries, size, rng)
        best = (candidates @ chosen.T).amax(-1).argmin()
        chosen = torch.cat([chosen, candidates[best][None]])
    return chosen


def _coherence(rows: Float[Tensor, "row size"], sample: int = 2048) -> float:
    """Largest product of two different rows among the first `sample`."""
    first = rows[:sample]
    return float((first @ first.T).fill_diagonal_(-1).max())
