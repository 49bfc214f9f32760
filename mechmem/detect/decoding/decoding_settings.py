"""How text is decoded for a detector, and at which steps it is looked at."""

from __future__ import annotations

from dataclasses import dataclass

from mechmem.data.bounds import Amount, Count, Seed, Size, check_fields, checked
from mechmem.data.errors import InputError

# Own tokens said when features are read, where the caller does not say.
KS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)


@dataclass(frozen=True)
class DecodingSettings:
    """How a model continues prefixes.

    Attributes:
        ks: steps at which features are read, as numbers of own tokens said; None: 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32
            and 48, those of them that are less than what is said.
        max_new_tokens: tokens said; None: as many as the paragraphs' continuations have.
        temperature: of sampling; 0: the first choice is taken (greedy decoding).
        top_k: sampling chooses among this many tokens; None: among all.
        seed: of sampling. Each prefix has its own random numbers, so that what is said does not depend on the batch.
    """

    ks: tuple[Size, ...] | None = None
    max_new_tokens: Count | None = None
    temperature: Amount = 0.0
    top_k: Count | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.top_k is not None and self.temperature == 0:
            raise InputError(
                f"got top_k={self.top_k} with temperature 0, which takes the first choice; need a temperature above 0, "
                "or omit top_k"
            )
        if self.ks is not None and (not self.ks or list(self.ks) != sorted(set(self.ks))):
            raise InputError(f"got ks={self.ks}; need numbers of tokens in rising order, each once: (0, 4, 16)")

    @checked
    def length(self, continuation_len: Count) -> int:
        """How many tokens are said."""
        return continuation_len if self.max_new_tokens is None else self.max_new_tokens

    @checked
    def steps(self, length: Count) -> tuple[int, ...]:
        """The ks, where `length` tokens are said.

        Raises:
            InputError: some of them are more than what is said.
        """
        if self.ks is None:
            return tuple(k for k in KS if k < length)
        if self.ks[-1] > length:
            raise InputError(
                f"got ks up to {self.ks[-1]} where {length} tokens are said; need at most {length}: give smaller ks or "
                "a larger max_new_tokens"
            )
        return self.ks
