"""Settings of a planted model: its size and its memories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mechmem.data.bounds import Amount, Count, Index, Seed, Size, check_fields
from mechmem.data.errors import InputError


@dataclass(frozen=True)
class PlantedSettings:
    """Size of a planted model and its memories.

    Attributes:
        n_layers, n_heads, d_model, d_mlp, d_vocab, n_ctx: GPT-Neo's; layers alternate global and local attention.
        layer, head: the head that attends to the rarest token so far.
        memories: paragraphs that the model reproduces; each has a token that is rarer than all others in it.
        others: paragraphs that it does not reproduce, each with a rare token without meaning.
        prefix_len, continuation_len: tokens of a paragraph; every memory takes `continuation_len` neurons.
        noise: scale of the random weights of every other head and neuron.
        seed: of everything random.
    """

    n_layers: Count = 4
    n_heads: Count = 4
    d_model: Count = 128
    d_mlp: Count = 512
    d_vocab: Count = 512
    n_ctx: Count = 128
    layer: Index = 1
    head: Index = 2
    memories: Count = 8
    others: Size = 16
    prefix_len: Count = 50
    continuation_len: Count = 50
    noise: Amount = 0.05
    seed: Seed = 0

    @classmethod
    def gpt_neo_125m(cls, **changed: Any) -> PlantedSettings:
        """The shape of GPT-Neo 125M: 12 layers of 12 heads, 768 wide, 50,257 tokens, a context of 2,048.

        Args:
            **changed: any other setting; up to 675 memories fit.
        """
        return cls(n_layers=12, n_heads=12, d_model=768, d_mlp=3072, d_vocab=50257, n_ctx=2048, **changed)

    def __post_init__(self) -> None:
        """Refuse sizes that cannot hold the memories.

        Raises:
            InputError: a size is out of range; the message says which and what is needed.
        """
        check_fields(self)
        if not (0 <= self.layer < self.n_layers and 0 <= self.head < self.n_heads):
            raise InputError(
                f"got layer {self.layer} and head {self.head}; need a layer below {self.n_layers} and a head below "
                f"{self.n_heads}, counted from zero"
            )
        if self.n_heads < 3 or self.d_model % self.n_heads or self.d_model < 64:
            raise InputError(
                f"got {self.n_heads} heads and d_model {self.d_model}; need at least 3 heads (the planted one and two "
                "decoys), d_model a multiple of them and at least 64"
            )
        room, need = (self.n_layers - self.layer) * (self.d_mlp - 1), self.memories * self.continuation_len
        if need > room or self.memories < 2:
            raise InputError(
                f"{self.memories} memories of {self.continuation_len} tokens take {need} neurons and from layer "
                f"{self.layer} on there are {room}; need 2 or more memories, and fewer, or a wider model"
            )
        if self.prefix_len < 2 or self.continuation_len < 1 or self.n_ctx < self.prefix_len + self.continuation_len:
            raise InputError(
                f"got a prefix of {self.prefix_len} and a continuation of {self.continuation_len} for a context of "
                f"{self.n_ctx}; need at least 2 and 1, together no more than the context"
            )
        if self.d_vocab < 4 * (self.memories + self.others):
            raise InputError(
                f"got a vocabulary of {self.d_vocab}; need at least {4 * (self.memories + self.others)}, four "
                "tokens for each paragraph"
            )
