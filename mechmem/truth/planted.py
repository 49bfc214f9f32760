"""A GPT-Neo whose memories are written in by hand, so that the correct answer for every localizer is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GPTNeoConfig

from mechmem.data.bounds import Seed, checked
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.architectures import hooked_settings
from mechmem.model.forward import continuation_reader
from mechmem.model.load import HookedTransformer, HookedTransformerConfig, empty_model
from mechmem.truth.planted_codes import Directions, planted_directions, planted_text
from mechmem.truth.planted_settings import PlantedSettings

# Output of a neuron that matches, and of the whole memory in units of a token's own embedding.
FIRED = 6.0
WRITTEN = 4.0
# Size of the constant part of the residual stream: the rest hardly changes the norm, so LayerNorm is nearly linear.
CONSTANT = 200.0
# What a decoy writes for any input, relative to 1 for the planted head; its token-dependent output is as large.
LOUD = 4.0
# Paragraphs whose logits are held at once: 50 columns of GPT-Neo's vocabulary take 10 MB a paragraph.
CHECKED_AT_ONCE = 16


@dataclass(frozen=True)
class Planted:
    """A model and the answer that localizers should find.

    Attributes:
        model: raw weights; `export` writes it as a GPT-Neo that transformers loads.
        memorized: paragraphs with EM equal to the continuation's length.
        other: paragraphs with EM 0.
        unigram_counts: how often each token occurs in the imagined corpus, [d_vocab].
        head: (layer, head) that every memory goes through; without it EM is 0.
        neurons: (layer, neuron) that write the memories' tokens.
        silent: a head with the same attention that writes nothing.
        loud: heads that write more than the planted head, to dimensions that nothing reads.
        shared: (layer, neuron) that is active for memorized and other paragraphs alike.
        triggers: position of each memory's rare token.
    """

    model: HookedTransformer
    memorized: Paragraphs
    other: Paragraphs
    unigram_counts: Int[Tensor, " d_vocab"]
    head: tuple[int, int]
    neurons: tuple[tuple[int, int], ...]
    silent: tuple[int, int]
    loud: tuple[tuple[int, int], ...]
    shared: tuple[int, int]
    triggers: Int[np.ndarray, " paragraph"]

    def __repr__(self) -> str:
        layer, head = self.head
        return (
            f"Planted({len(self.memorized)} memories through L{layer}H{head} and {len(self.neurons)} neurons, "
            f"{len(self.other)} other paragraphs)"
        )

    @checked
    def null(self, seed: Seed = 0) -> Planted:
        """The same model with random labels: memorized paragraphs, head, neurons and counts are shuffled.

        Paragraphs are assigned to the two sets at random, head and neurons are drawn from all heads and neurons, and
        counts are permuted over the tokens. A method that finds these labels finds them by chance.
        """
        rng = np.random.default_rng(seed)
        cfg = self.model.cfg
        tokens = torch.cat([self.memorized.tokens, self.other.tokens])
        order = torch.from_numpy(rng.permutation(len(tokens)))
        sets = tokens[order[: len(self.memorized)]], tokens[order[len(self.memorized) :]]
        memorized, other = (Paragraphs(rows, self.memorized.prefix_len) for rows in sets)
        everywhere = rng.choice(cfg.n_layers * (cfg.d_mlp or 1), len(self.neurons), replace=False)
        return replace(
            self,
            memorized=memorized,
            other=other,
            unigram_counts=self.unigram_counts[torch.from_numpy(rng.permutation(cfg.d_vocab))],
            head=(int(rng.integers(cfg.n_layers)), int(rng.integers(cfg.n_heads))),
            neurons=tuple(sorted(divmod(int(flat), cfg.d_mlp or 1) for flat in everywhere)),
        )


def planted(settings: PlantedSettings | None = None) -> Planted:
    """Write memories into a GPT-Neo by hand, following the mechanism in Stoehr et al. 2024 (arXiv 2403.19851).

    1. Embeddings hold a token's identity, its rarity (from corpus counts) and, for rare tokens, a code; positions have
       codes of their own and a large constant, which makes LayerNorm linear.
    2. The head's query is constant (a bias of `ln_1`, for GPT-Neo has no query bias), its key is rarity: it attends to
       the rarest token so far and writes that token's code to a reserved part of the residual stream.
    3. A neuron above it for each token of each memory matches (code, position) and writes the next token.
    4. Without a match the model repeats the current token, so paragraphs without repeats have EM 0.
    5. Decoys: a head beside it with the same queries, keys and values that writes nothing; in every layer a head that
       writes several times as much to dimensions that nothing reads; a neuron that is always active; small random
       weights elsewhere.

    Args:
        settings: None: `PlantedSettings()`.

    Returns:
        The model and its answer. EM is verified to be complete on every memory and 0 on every other paragraph.

    Raises:
        InputError: sizes in which the memories interfere with each other.
    """
    settings = settings or PlantedSettings()
    rng = np.random.default_rng(settings.seed)
    text = planted_text(settings, rng)
    directions = planted_directions(settings, text, rng)
    model = empty_model(_config(settings))
    generator = torch.Generator().manual_seed(settings.seed)
    slots = _slots(settings, rng)
    with torch.no_grad():
        _background(model, directions, settings.noise, generator)
        _write_embeddings(model, directions)
        silent, loud = _write_heads(model, settings, directions, generator)
        shared = (settings.layer, settings.d_mlp - 1)
        _write_neurons(model, text.memorized, directions, slots, settings.prefix_len, shared)
    truth = Planted(
        model.eval(),
        Paragraphs(text.memorized, settings.prefix_len),
        Paragraphs(text.other, settings.prefix_len),
        text.counts,
        (settings.layer, settings.head),
        tuple(sorted(place for row in slots for place in row)),
        silent,
        loud,
        shared,
        text.triggers,
    )
    _check_truth(truth)
    return truth


def _config(settings: PlantedSettings) -> HookedTransformerConfig:
    config = GPTNeoConfig(
        vocab_size=settings.d_vocab,
        max_position_embeddings=settings.n_ctx,
        hidden_size=settings.d_model,
        num_layers=settings.n_layers,
        num_heads=settings.n_heads,
        intermediate_size=settings.d_mlp,
        attention_types=[[(["global", "local"] * settings.n_layers)[: settings.n_layers], 1]],
        bos_token_id=None,
        eos_token_id=None,
    )
    fixed = {"device": "cpu", "default_prepend_bos": False, "init_weights": False, "model_name": "planted"}
    return HookedTransformerConfig(**hooked_settings(config) | fixed)


def _slots(settings: PlantedSettings, rng: np.random.Generator) -> list[list[tuple[int, int]]]:
    """Which (layer, neuron) writes which token of which memory: anywhere from the head's layer on."""
    free = [(layer, n) for layer in range(settings.layer, settings.n_layers) for n in range(settings.d_mlp - 1)]
    taken = rng.choice(len(free), (settings.memories, settings.continuation_len), replace=False)
    return [[free[int(flat)] for flat in row] for row in taken]


def _background(model: HookedTransformer, directions: Directions, noise: float, generator: torch.Generator) -> None:
    """Small random weights everywhere; norms that read the text dimensions and undo their own scaling."""
    d_model = model.cfg.d_model
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim > 1 and ".b_" not in name
        values = torch.randn(parameter.shape, generator=generator) * noise / d_model**0.5
        parameter.copy_(values if matrix and name.startswith("blocks") else torch.zeros(parameter.shape))
    scale = CONSTANT * (2 / d_model) ** 0.5
    for name, module in model.named_modules():
        if name.endswith((".ln1", ".ln2")):
            module.get_parameter("w").copy_(scale * directions.read)
        if name.endswith(".ln1"):
            module.get_parameter("b").copy_(directions.constant)
    model.ln_final.get_parameter("w").copy_(scale * directions.sharpness * directions.token_part)


def _write_embeddings(model: HookedTransformer, directions: Directions) -> None:
    model.embed.W_E.copy_(directions.tokens + directions.rarity + directions.codes)
    model.unembed.W_U.copy_(model.embed.W_E.T)
    model.pos_embed.W_pos.copy_(directions.positions + CONSTANT * directions.balance)


def _write_heads(
    model: HookedTransformer, settings: PlantedSettings, directions: Directions, generator: torch.Generator
) -> tuple[tuple[int, int], tuple[tuple[int, int], ...]]:
    """Write the planted head, its silent copy and the loud heads; return the decoys."""
    heads, width = settings.n_heads, directions.code_in.shape[1]
    silent = (settings.layer, (settings.head + 1) % heads)
    for head in (settings.head, silent[1]):
        attention = model.blocks[settings.layer].attn
        query, key, value, output = (attention.get_parameter(f"W_{letter}")[head] for letter in "QKVO")
        for weight in (query, key, value, output):
            weight.zero_()
        query[:, 0] = directions.constant
        key[:, 0] = directions.rarity_in
        value[:, :width] = directions.code_in
        if head == settings.head:
            output[:width] = directions.code_out
    loud = tuple((layer, (settings.head + 2) % heads) for layer in range(settings.n_layers))
    for layer, head in loud:
        attention = model.blocks[layer].attn
        junk = directions.junk_part.nonzero().flatten()
        size = min(len(junk), settings.d_model // heads)
        seen = directions.token_part + directions.constant
        mixing = torch.randn(settings.d_model, size, generator=generator) * seen[:, None]
        # Zero-sum, like everything that is written, so that LayerNorm's mean stays zero.
        mixing -= mixing.mean(-1, keepdim=True)
        for letter in "VO":
            attention.get_parameter(f"W_{letter}")[head] = 0.0
        attention.get_parameter("W_V")[head, :, :size] = LOUD * size**-0.5 * mixing
        attention.get_parameter("W_O")[head, torch.arange(size), junk[:size]] = 1.0
    return silent, loud


def _write_neurons(
    model: HookedTransformer,
    tokens: Int[Tensor, "paragraph pos"],
    directions: Directions,
    slots: list[list[tuple[int, int]]],
    prefix_len: int,
    shared: tuple[int, int],
) -> None:
    # A full match sums to 2; a match of only code or position sums to at most `directions.confusion`.
    gain = 2 * FIRED / (2 - directions.confusion)
    threshold = 2 - FIRED / gain
    for memory, row in enumerate(slots):
        for step, (layer, neuron) in enumerate(row):
            mlp = model.blocks[layer].mlp
            column = prefix_len - 1 + step
            pattern = directions.matches[memory] + directions.positions[column]
            mlp.get_parameter("W_in")[:, neuron] = gain * pattern
            mlp.get_parameter("b_in")[neuron] = -gain * threshold
            mlp.get_parameter("W_out")[neuron] = WRITTEN / FIRED * directions.tokens[tokens[memory, column + 1]]
    layer, neuron = shared
    mlp = model.blocks[layer].mlp
    mlp.get_parameter("b_in")[neuron] = FIRED / 2
    mlp.get_parameter("W_out")[neuron] = directions.tokens[0] / FIRED / 4


def _check_truth(truth: Planted) -> None:
    """Refuse a model whose memories interfere."""
    found: list[Float[Tensor, " paragraph"]] = []
    reader = continuation_reader(truth.model, truth.memorized.prefix_len)
    for paras in (truth.memorized, truth.other):
        said = [reader(rows).argmax(-1) for rows in paras.tokens.split(CHECKED_AT_ONCE)]
        match = torch.cat([paras.continuation[:0], *said]) == paras.continuation
        found.append(match.long().cumprod(-1).sum(-1).float())
    need = truth.memorized.continuation_len
    if bool((found[0] < need).any()) or bool(found[1].any()):
        raise InputError(
            f"{int((found[0] < need).sum())} of {len(found[0])} planted memories are not reproduced and "
            f"{int(found[1].any().sum())} other paragraphs have matches: the memories interfere; need a wider model "
            "(d_model), fewer memories, or less noise"
        )
