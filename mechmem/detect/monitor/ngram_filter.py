"""A Bloom filter of token n-grams: which next tokens would complete one (MemFree; Ippolito et al. 2023)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechmem.data.bounds import Count, Level, checked
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs

# Odd constants of the hash functions: splitmix64's, and one for each role of a number.
GOLDEN, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
POSITION, CONTEXT, LAST, STEP = 0x2545F4914F6CDD1D, 0x1D8E4E27C47D124F, 0x5851F42D4C957F2D, 0x14057B7EF767814F
# Rows whose last tokens begin no stored n-gram are passed over; one row in a hundred is looked at for nothing.
CONTEXT_RATE = 0.01


class BloomFilter:
    """A set of well-mixed 64-bit numbers in few bits: every number that was put in is found, and a few others are.

    Args:
        numbers: what is put in, [number].
        false_rate: the most of other numbers that may be found all the same.

    Attributes:
        bits: how many bits are kept, a power of two.
        probes: bits that are looked at for one number.
    """

    def __init__(self, numbers: Int[Tensor, " number"], false_rate: float) -> None:
        count = max(len(numbers), 1)
        self.bits = 2 ** max(3, math.ceil(math.log2(-count * math.log(false_rate) / math.log(2) ** 2)))
        # Fewer probes than would be best for the bits suffice for the rate, and cost less.
        most = max(1, round(self.bits / count * math.log(2)))
        self.probes = next(
            (k for k in range(1, most) if (1 - math.exp(-k * count / self.bits)) ** k <= false_rate / 1.05), most
        )
        kept = torch.zeros(self.bits, dtype=torch.bool, device=numbers.device)
        step = _step(numbers)
        for probe in range(self.probes):
            kept[(numbers + probe * step) & (self.bits - 1)] = True
        powers = 2 ** torch.arange(8, dtype=torch.uint8, device=numbers.device)
        self._bytes = (kept.view(-1, 8) * powers).sum(-1, dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        """Memory of the bits."""
        return self._bytes.numel()

    def contains(self, numbers: Int[Tensor, "*number"]) -> Bool[Tensor, "*number"]:
        """Which numbers were put in, or are taken for one that was."""
        flat = numbers.flatten()
        # About half of the others end at each probe, so only what is left is hashed a second time.
        left = self._set(flat).nonzero()[:, 0]
        step = _step(flat[left])
        for probe in range(1, self.probes):
            passed = self._set(flat[left] + probe * step)
            left, step = left[passed], step[passed]
        found = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        found[left] = True
        return found.view(numbers.shape)

    def _set(self, numbers: Tensor) -> Bool[Tensor, " number"]:
        place = numbers & (self.bits - 1)
        return (self._bytes[place >> 3] >> (place & 7).to(torch.uint8)) & 1 == 1

    def to(self, device: torch.device) -> BloomFilter:
        """The same bits on a device."""
        moved = object.__new__(BloomFilter)
        moved.bits, moved.probes, moved._bytes = self.bits, self.probes, self._bytes.to(device)
        return moved


def _step(numbers: Tensor) -> Tensor:
    """Double hashing: the distance between a number's places, odd so that they differ."""
    return mixed(numbers ^ STEP) | 1


class NgramFilter:
    """The n-grams of some paragraphs, in little memory: which next tokens would complete one.

    Every n-gram of the paragraphs is kept, those that begin in the prefix included, so none is ever missed. Another
    n-gram is taken for one of theirs at the stated rate.

    Attributes:
        n: tokens of an n-gram.
        count: distinct n-grams.
        false_rate: the most of other n-grams that are taken for one of the paragraphs'.
    """

    def __init__(self, grams: Int[Tensor, "gram n"], false_rate: float) -> None:
        distinct = torch.unique(grams, dim=0)
        self.n, self.count, self.false_rate = grams.shape[1], len(distinct), false_rate
        contexts = _context(distinct[:, :-1])
        self._contexts = BloomFilter(torch.unique(contexts), CONTEXT_RATE)
        self._grams = BloomFilter(_gram(contexts, distinct[:, -1]), false_rate)

    @classmethod
    @checked
    def of(cls, paragraphs: Paragraphs, *, n: Count = 10, false_rate: Level = 1e-6) -> NgramFilter:
        """The filter of all n-grams of some paragraphs.

        Args:
            paragraphs: prefix and continuation alike.
            n: tokens of an n-gram.
            false_rate: the most of other n-grams that may be taken for one of these; 29 to 58 bits an n-gram at 1e-6.

        Raises:
            InputError: the paragraphs are shorter than n.
        """
        length = paragraphs.tokens.shape[1]
        if len(paragraphs) == 0 or n > length:
            raise InputError(
                f"got n-grams of {n} tokens and {len(paragraphs)} paragraphs of {length}; need at least 1 paragraph of "
                f"at least n tokens: a smaller n, or longer paragraphs"
            )
        return cls(paragraphs.tokens.unfold(1, n, 1).flatten(0, 1), false_rate)

    @property
    def nbytes(self) -> int:
        """Memory of the filter."""
        return self._grams.nbytes + self._contexts.nbytes

    def contains(self, grams: Int[Tensor, "*gram n"]) -> Bool[Tensor, "*gram"]:
        """Which n-grams are the paragraphs', or are taken for one of theirs."""
        contexts = _context(grams[..., :-1])
        return self._contexts.contains(contexts) & self._grams.contains(_gram(contexts, grams[..., -1]))

    def completing(
        self, tail: Int[Tensor, "row context_pos"], vocabulary: Int[Tensor, " token"]
    ) -> tuple[Tensor, Bool[Tensor, "hit vocab"]]:
        """Which next tokens would complete an n-gram, for the rows where any can.

        Args:
            tail: each row's last n - 1 tokens; a negative one stands for no token, and completes nothing.
            vocabulary: the tokens that may come next, on the same device.

        Returns:
            The rows whose tail begins an n-gram, [hit], and for each of them every token that would complete one.
        """
        contexts = _context(tail)
        # Most rows end here.
        rows = (self._contexts.contains(contexts) & (tail >= 0).all(-1)).nonzero()[:, 0]
        return rows, self._grams.contains(_gram(contexts[rows][:, None], vocabulary))

    def to(self, device: torch.device) -> NgramFilter:
        """The same filter on a device."""
        moved = object.__new__(NgramFilter)
        moved.n, moved.count, moved.false_rate = self.n, self.count, self.false_rate
        moved._contexts, moved._grams = self._contexts.to(device), self._grams.to(device)
        return moved


def mixed(numbers: Tensor) -> Tensor:
    """A 64-bit number in which every bit depends on every bit (the finalizer of splitmix64)."""
    numbers = numbers + GOLDEN
    numbers = (numbers ^ _shifted(numbers, 30)) * FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, by: int) -> Tensor:
    """Shift to the right without the sign."""
    return (numbers >> by) & ((1 << (64 - by)) - 1)


def _context(tail: Int[Tensor, "*row context_pos"]) -> Int[Tensor, "*row"]:
    """One number for all tokens of an n-gram but the last."""
    positions = torch.arange(1, tail.shape[-1] + 1, device=tail.device) * POSITION
    return mixed(mixed(tail + positions).sum(-1) ^ CONTEXT)


def _gram(contexts: Int[Tensor, "*#gram"], last: Int[Tensor, "*#gram"]) -> Int[Tensor, ...]:
    """One number for each n-gram, from that of its context and its last token; the two broadcast."""
    return mixed(contexts ^ mixed(last + LAST))
