"""Attention by plain matrix products in blocks against torch's fused kernel on a CPU: why the lean forward has its own.

    python experiments/benchmarks/attention.py      # a minute; writes docs/benchmarks/attention.md

Both compute the same result and alternate for ROUNDS rounds; figures are medians.
"""

import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from mechmem.model.lean.attention import LONG, attend
from mechmem.model.lean.model import fast_float32

# Settings -------------------------------------------------------------------------------------------------------------
PAGE = Path("docs/benchmarks/attention.md")
ROUNDS = 5
# paragraphs, heads, d_head, query positions, key positions
SIZES = [
    (16, 8, 32, 99, 99),
    (6, 12, 64, 99, 99),
    (16, 12, 64, 99, 99),
    (64, 12, 64, 99, 99),
    (16, 12, 64, 36, 99),
    (64, 12, 64, 1, 75),
    (16, 12, 64, 200, 200),
    (16, 12, 64, 512, 512),
    (4, 12, 64, 1024, 1024),
]


@torch.no_grad()
def main() -> None:
    """Time both implementations at every size and write the page."""
    torch.manual_seed(0)
    lines = ["# Attention on a CPU", ""]
    lines += [
        f"`python experiments/benchmarks/attention.py`, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {ROUNDS} rounds, milliseconds per layer. "
        f"From {LONG + 1} keys on, mechmem uses the fused kernel.",
        "",
        "| type | paragraphs x heads x d_head | queries x keys | fused | in blocks | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for dtype in (torch.float32, torch.bfloat16):
        for paragraphs, heads, d_head, queries, keys in SIZES:
            query = torch.randn(paragraphs, heads, queries, d_head).to(dtype)
            key, value = torch.randn(2, paragraphs, heads, keys, d_head).to(dtype)
            seen = torch.ones(keys, keys, dtype=torch.bool).tril()[keys - queries :]
            ways = (
                lambda q=query, k=key, v=value, s=seen: functional.scaled_dot_product_attention(q, k, v, s, scale=1.0),
                lambda q=query, k=key, v=value, s=seen: attend(q, k, v, s, 1.0),
            )
            seconds: list[list[float]] = [[], []]
            with fast_float32(query.device):
                for _ in range(ROUNDS + 1):
                    for way, times in zip(ways, seconds, strict=True):
                        started = time.perf_counter()
                        way()
                        times.append(time.perf_counter() - started)
            fused, blocks = (np.array(times[1:]) * 1000 for times in seconds)
            lines.append(
                f"| {str(dtype).removeprefix('torch.')} | {paragraphs} x {heads} x {d_head} | {queries} x {keys} | "
                f"{np.median(fused):.2f} | {np.median(blocks):.2f} | {np.median(fused / blocks):.1f} |"
            )
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
