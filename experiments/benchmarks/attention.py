"""Attention by plain matrix products in blocks against torch's fused kernel on a CPU: why the lean forward has its own.

    python experiments/benchmarks/attention.py      # a minute; writes docs/benchmarks/attention.md

Both compute the same result and alternate for several rounds; figures are medians.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from rounds import alternate, stamp, write_page
from torch.nn import functional

from mechmem.data.bounds import Count, check_fields
from mechmem.model.lean.attention import LONG, attend
from mechmem.model.lean.model import fast_float32

# paragraphs, heads, d_head, query positions, key positions
SIZES = (
    (16, 8, 32, 99, 99),
    (6, 12, 64, 99, 99),
    (16, 12, 64, 99, 99),
    (64, 12, 64, 99, 99),
    (16, 12, 64, 36, 99),
    (64, 12, 64, 1, 75),
    (16, 12, 64, 200, 200),
    (16, 12, 64, 512, 512),
    (4, 12, 64, 1024, 1024),
)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        rounds: repetitions.
        sizes: paragraphs, heads, d_head, query positions and key positions of each product.
        page: the table, or None.
    """

    rounds: Count = 5
    sizes: tuple[tuple[Count, Count, Count, Count, Count], ...] = SIZES
    page: Path | None = Path("docs/benchmarks/attention.md")

    def __post_init__(self) -> None:
        check_fields(self)


@torch.no_grad()
def main(settings: Settings) -> list[dict[str, float]]:
    """Time both implementations at every size and write the page.

    Args:
        settings: what is measured.

    Returns:
        Of each type and size: milliseconds `fused` and `blocks`, the median `ratio` within a round, and the largest
        `difference` between the outputs.
    """
    torch.manual_seed(0)
    results, lines = [], []
    for dtype in (torch.float32, torch.bfloat16):
        for paragraphs, heads, d_head, queries, keys in settings.sizes:
            query = torch.randn(paragraphs, heads, queries, d_head).to(dtype)
            key, value = torch.randn(2, paragraphs, heads, keys, d_head).to(dtype)
            seen = torch.ones(keys, keys, dtype=torch.bool).tril()[keys - queries :]
            fused = partial(functional.scaled_dot_product_attention, query, key, value, seen, scale=1.0)
            blocks = partial(attend, query, key, value, seen, 1.0)
            with fast_float32(query.device):
                found = alternate({"fused": fused, "blocks": blocks}, settings.rounds, warm_up=True)
                difference = float((fused().float() - blocks().float()).abs().max())
            row = {name: float(np.median(seconds)) * 1000 for name, seconds in found.items()}
            row |= {"ratio": float(np.median(found["fused"] / found["blocks"])), "difference": difference}
            results.append(row)
            lines.append(
                f"| {str(dtype).removeprefix('torch.')} | {paragraphs} x {heads} x {d_head} | {queries} x {keys} | "
                f"{row['fused']:.2f} | {row['blocks']:.2f} | {row['ratio']:.1f} | {difference:.1e} |"
            )
    head = [
        "# Attention on a CPU",
        "",
        f"{stamp('attention.py', settings.rounds)} Milliseconds per layer. From {LONG + 1} keys on, mechmem uses the "
        "fused kernel. Difference: the largest between the outputs.",
        "",
        "| type | paragraphs x heads x d_head | queries x keys | fused | in blocks | ratio | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    write_page(settings.page, [*head, *lines])
    return results


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
