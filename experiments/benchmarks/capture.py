"""Captured activations against run_with_cache with the same names, and the memory of a capture to a file.

    python experiments/benchmarks/capture.py      # 15 minutes; writes docs/benchmarks/capture.md

1. Speed: both take batches of one size, and alternate for several rounds; figures are medians of CPU seconds, and
   ratios are taken within a round.
2. Memory: captures to a file, each in a process of its own; the peak above that of the same process just before.

The model has GPT-Neo 125M's shape and random weights.
"""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rounds import Shape, spread, stamp, write_page

import mechmem as mm
from mechmem.data.bounds import Count, Seed, check_fields
from mechmem.model.lean.trace import HOOKS
from mechmem.model.load import HookedTransformer, HookedTransformerConfig, empty_model

SITES = (("z", "pattern", "v"), ("mlp_post",))


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        rounds: repetitions.
        paragraphs: of the speed, 100 tokens each.
        batch_size: paragraphs of one forward.
        sites: what is captured together.
        sizes: paragraphs of each capture to a file, of z.
        planned: the number of paragraphs whose file's size is told beside.
        shape: of the model.
        seed: of weights and tokens.
        page: the tables, or None.
    """

    rounds: Count = 5
    paragraphs: Count = 32
    batch_size: Count = 16
    sites: tuple[tuple[str, ...], ...] = SITES
    sizes: tuple[Count, ...] = (100, 400)
    planned: Count = 10_000
    shape: Shape = field(default_factory=Shape)
    seed: Seed = 0
    page: Path | None = Path("docs/benchmarks/capture.md")

    def __post_init__(self) -> None:
        check_fields(self)


def main(settings: Settings) -> dict[str, Any]:
    """Measure both and write the page.

    Returns:
        `speed`: sites -> ratios, [round]; `memory`: paragraphs -> peak in bytes above that before; `bytes`: of the
        largest file.
    """
    model = random_model(settings)
    speed = {sites: cpu_seconds(model, sites, settings) for sites in settings.sites}
    lines = [
        "# Capturing activations",
        "",
        f"{stamp('capture.py', settings.rounds, settings.seed)} GPT-Neo 125M's shape, random weights.",
        "",
        f"## Speed: {settings.paragraphs} paragraphs of 100 tokens, {settings.batch_size} at once",
        "",
        "| sites | capture, CPU seconds | run_with_cache, CPU seconds | ratio, median | lowest | highest |",
        "|---|---|---|---|---|---|",
    ]
    for sites, found in speed.items():
        ours, theirs = (np.median(found[name]) for name in ("ours", "theirs"))
        ratio = spread(found["theirs"] / found["ours"], ".2f")
        lines.append(f"| {', '.join(sites)} | {ours:.1f} | {theirs:.1f} | {ratio} |")
    memory = {count: apart(peak_of_file, settings, count) for count in settings.sizes}
    lines += [
        "",
        "`run_with_cache(tokens, names_filter=...)` computes the logits of all positions as well; its result is one "
        "dict a batch, without labels. A capture copies every activation into one array.",
        "",
        "## Memory: z to a file",
        "",
        "| paragraphs | file, GB | peak above the model, MB | seconds |",
        "|---|---|---|---|",
    ]
    for count, (peak, size, seconds) in memory.items():
        lines.append(f"| {count:,} | {size / 1e9:.2f} | {peak / 1e6:,.0f} | {seconds:.0f} |")
    one = memory[settings.sizes[-1]][1] / settings.sizes[-1]
    lines += ["", f"A file of {settings.planned:,} paragraphs takes {one * settings.planned / 1e9:.0f} GB."]
    write_page(settings.page, lines)
    return {
        "speed": {sites: found["theirs"] / found["ours"] for sites, found in speed.items()},
        "memory": {count: peak for count, (peak, _, _) in memory.items()},
        "bytes": memory[settings.sizes[-1]][1],
    }


def random_model(settings: Settings) -> HookedTransformer:
    """A GPT-Neo of this shape."""
    shape = settings.shape
    config = HookedTransformerConfig(
        n_layers=shape.layers,
        n_heads=shape.heads,
        d_model=shape.width,
        d_head=shape.width // shape.heads,
        d_mlp=4 * shape.width,
        n_ctx=shape.context,
        d_vocab=shape.vocabulary,
        act_fn="gelu_new",
        use_attn_scale=False,
        use_local_attn=True,
        attn_types=["global" if layer % 2 == 0 else "local" for layer in range(shape.layers)],
        window_size=256,
        original_architecture="GPTNeoForCausalLM",
        seed=settings.seed,
        device="cpu",
    )
    return empty_model(config).eval()


def random_paragraphs(settings: Settings, count: int) -> mm.Paragraphs:
    """Tokens at random."""
    generator = torch.Generator().manual_seed(settings.seed)
    return mm.Paragraphs(torch.randint(0, settings.shape.vocabulary, (count, 100), generator=generator), prefix_len=50)


def cpu_seconds(model: HookedTransformer, sites: tuple[str, ...], settings: Settings) -> dict[str, np.ndarray]:
    """CPU seconds of both, [round]."""
    paragraphs = random_paragraphs(settings, settings.paragraphs)
    endings = tuple(HOOKS[site] for site in sites)

    @torch.no_grad()
    def theirs() -> list[Any]:
        parts = paragraphs.tokens.split(settings.batch_size)
        return [model.run_with_cache(part, names_filter=lambda name: name.endswith(endings))[1] for part in parts]

    def ours() -> Any:
        return mm.capture(model, paragraphs, sites, batch_size=settings.batch_size)

    work: dict[str, Callable[[], Any]] = {"ours": ours, "theirs": theirs}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(settings.rounds + 1):
        for name, run in work.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def peak_of_file(settings: Settings, count: int) -> tuple[int, int, float]:
    """Peak of a capture to a file above that before, bytes; the file's size; seconds."""
    model, paragraphs = random_model(settings), random_paragraphs(settings, count)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder) / "z.nc"
        mm.capture(model, paragraphs[: settings.batch_size], "z", out=Path(folder) / "warm.nc")
        before, started = peak(), time.perf_counter()
        mm.capture(model, paragraphs, "z", batch_size=settings.batch_size, out=path).close()
        return peak() - before, path.stat().st_size, time.perf_counter() - started


def peak() -> int:
    """The largest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.apply(work, arguments)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
