"""What a head's findings come to, in sentences that also say what was not shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Nats per token: less than this does not matter, however sure it is. Half a nat over a continuation of 50 tokens.
SMALLEST = 0.01
# Of an interval that lies above zero and reaches below that.
TOO_LITTLE = f"though not shown to be by at least {SMALLEST:g} nats per token"


@dataclass(frozen=True)
class Findings:
    """The numbers that a verdict rests on.

    Attributes:
        head: its name.
        heads: of the model.
        excess, p: attention mass to rare tokens above its expectation, and its corrected p-value, by set.
        ranks: the head's rank among all heads, by measure; 1 has the most.
        output: mean and interval of the NLL's change without the head's output, nats per token.
        rare: mean and interval of the same without its rare keys minus that without as many frequent ones.
        em: mean change of EM without its output, tokens.
        keys: how many rare keys.
        level: of the test, two-sided intervals being 95 %.
    """

    head: str
    heads: int
    excess: Mapping[str, float]
    p: Mapping[str, float]
    ranks: Mapping[str, int]
    output: tuple[float, float, float]
    rare: tuple[float, float, float]
    em: float
    keys: int
    level: float

    @property
    def attends(self) -> bool:
        """Whether it attends to the memorized paragraphs' rare tokens more than by chance."""
        return self.p["memorized"] < self.level and self.excess["memorized"] > 0

    @property
    def matters(self) -> bool:
        """Whether its removal makes the memorized text less likely."""
        return self.output[1] > SMALLEST

    @property
    def at_rare(self) -> bool:
        """Whether it matters more at rare keys than at frequent ones."""
        return self.rare[1] > SMALLEST


def verdict(found: Findings) -> str:
    """The findings in three sentences or four."""
    return " ".join([_attention(found), _removal(found), _keys(found), _conclusion(found)])


def _attention(found: Findings) -> str:
    numbers = (
        f"excess {found.excess['memorized']:.3g}, p {found.p['memorized']:.2g}, corrected over {found.heads} heads"
    )
    if not found.attends:
        return f"{found.head} does not attend to rare tokens more than expected ({numbers})."
    rank = f"rank {found.ranks['excess']} of {found.heads} by excess, {found.ranks['spearman']} by rank correlation"
    as_well = "as it does in the others" if found.p["other"] < found.level else "which was not shown for the others"
    return f"{found.head} attends to the rare tokens of memorized paragraphs ({numbers}; {rank}), {as_well}."


def _removal(found: Findings) -> str:
    mean, low, high = found.output
    numbers = f"{mean:+.3g} nats per token [{low:.3g}, {high:.3g}], EM {found.em:+.3g}"
    if found.matters:
        return f"Without its output the memorized text is less likely ({numbers})."
    if low > 0:
        return f"Without its output the memorized text is less likely, {TOO_LITTLE} ({numbers})."
    return f"Its removal was not shown to cost anything ({numbers})."


def _keys(found: Findings) -> str:
    mean, low, high = found.rare
    numbers = f"{mean:+.3g} nats per token [{low:.3g}, {high:.3g}]"
    against = f"its attention to the {found.keys} rarest prefix tokens away costs"
    if found.at_rare:
        return f"Taking {against} more than taking away that to as many frequent ones ({numbers})."
    if low > 0:
        more = "more than taking away that to as many frequent ones"
        return f"Taking {against} {more}, {TOO_LITTLE} ({numbers})."
    return f"Taking {against} not measurably more than taking away that to as many frequent ones ({numbers})."


def _conclusion(found: Findings) -> str:
    if found.attends and found.matters and found.at_rare:
        return f"{found.head} attends to rare tokens, and what it reads from them is needed to recite."
    if found.attends and found.matters:
        return "It attends to rare tokens and matters; that it matters by what it reads from them was not shown."
    if found.attends:
        return "It attends to rare tokens; not shown to matter."
    if found.matters:
        return "It matters, but not shown to attend to rare tokens."
    if found.output[1] > 0:
        return "It was not shown to attend to rare tokens, and little depends on it."
    return "Nothing was shown for this head."
