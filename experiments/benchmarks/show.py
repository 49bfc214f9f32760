"""How large pictures are and how soon a browser shows them; writes docs/benchmarks/show.md.

python experiments/benchmarks/show.py

Every picture is saved as a page and opened by Chromium in a process of its own. The time is from the beginning of the
navigation to the second frame after the picture says that it is ready, by the page's own clock.
"""

import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import tyro
import xarray as xr
from rounds import stamp, write_page
from scipy.special import softmax

import mechmem as mm
from mechmem.data.bounds import Count, Seed
from mechmem.show.browser import browser, headless

READY = "mechmem-ready"
# The frame after the next one has been painted when its callback runs.
PROBE = f"""<script>
const look = () => document.querySelector(".mechmem[data-ready]")
  ? requestAnimationFrame(() => requestAnimationFrame(() => console.log("{READY} " + performance.now())))
  : setTimeout(look, 5);
look();
</script>"""
PATIENCE = 120
Shown = mm.show.Picture | mm.show.Chart


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        repeats: pages are opened so often; the table has medians.
        seed: of the random tokens of the long text.
        page: the table.
    """

    repeats: Count = 5
    seed: Seed = 0
    page: Path = Path("docs/benchmarks/show.md")


def opened(page: Path, program: str) -> float:
    """Open a page without a window; -> milliseconds until it is seen."""
    # The browser's own processes may still write while the folder is removed.
    with tempfile.TemporaryDirectory(prefix="mechmem-", ignore_cleanup_errors=True) as folder:
        command = [*headless(program, Path(folder) / "profile"), "--remote-debugging-port=0"]
        command += ["--enable-logging=stderr", "--window-size=1400,1000", page.as_uri()]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
        try:
            assert process.stderr is not None
            began = time.monotonic()
            for line in process.stderr:
                found = re.search(rf"{READY} ([0-9.]+)", line)
                if found:
                    return float(found[1])
                if time.monotonic() - began > PATIENCE:
                    break
            raise SystemExit(f"{page.name} was not ready within {PATIENCE} seconds")
        finally:
            process.kill()
            process.wait()


def random_patterns(cache: xr.Dataset, seed: int) -> xr.Dataset:
    """A capture whose patterns are random: no two cells alike, so that they compress as little as patterns can."""
    scores = np.random.default_rng(seed).normal(0, 3, cache.pattern.shape)
    scores[..., np.triu(np.ones(scores.shape[-2:], bool), 1)] = -np.inf
    return cache.assign(pattern=(cache.pattern.dims, softmax(scores, axis=-1).astype(np.float32)))


def pictures(seed: int) -> Iterator[tuple[str, Callable[[], Shown]]]:
    """Each view of the models that users have: the bundled one, and one of GPT-Neo 125M's shape."""
    model, paragraphs = mm.load_model("bundled"), mm.bundled_paragraphs()
    scores = mm.score(model, paragraphs[:400])
    memorized, other = mm.split(paragraphs[:400], scores)
    clean, corrupt = mm.pairs(memorized[:4], other, match=())
    truth = mm.planted(mm.PlantedSettings.gpt_neo_125m(memories=2, others=2))
    random = torch.Generator().manual_seed(seed)
    long = mm.Paragraphs(torch.randint(50257, (1, 1024), generator=random), prefix_len=512)
    every = random_patterns(mm.capture(truth.model, truth.memorized[:1], sites=("pattern",)), seed)
    longest = random_patterns(mm.capture(truth.model, long, sites=("pattern",), layers=[1]), seed)
    yield "attention: 48 heads, 100 tokens", lambda: mm.show.attention(model, memorized[:1])
    yield "attention: 48 heads, 100 tokens, two sides", lambda: mm.show.attention(model, clean[:1], compare=corrupt[:1])
    yield "attention: 144 heads, 100 tokens, random patterns", lambda: mm.show.attention(every)
    yield "attention: 12 heads, 1,024 tokens, random patterns", lambda: mm.show.attention(longest)
    effect = mm.patch(model, clean, corrupt, site="z")
    yield "effects: 4 pairs, heads' patterns", lambda: mm.show.effects(effect, clean, corrupt=corrupt, model=model)
    yield "text: 10 paragraphs", lambda: mm.show.tokens(memorized[:10], model)
    yield "text of two models: 10 paragraphs", lambda: mm.show.diff(model, model, memorized[:10])
    yield "chart: EM and NLL of 400 paragraphs", lambda: mm.show.scores(scores, paragraphs[:400])


def row(name: str, make: Callable[[], Shown], repeats: int, program: str) -> str:
    """Make, save and open one picture; -> its line of the table."""
    began = time.perf_counter()
    picture = make()
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory(prefix="mechmem-") as folder:
        page = picture.save(Path(folder) / "picture.html")
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("<head>", "<head>" + PROBE, 1), encoding="utf-8")
        shown = median(opened(page, program) for _ in range(repeats))
    return f"| {name} | {seconds:.2f} | {len(picture.html.encode()) / 1e6:.2f} | {shown:.0f} |"


def main(settings: Settings) -> None:
    """Measure each picture and write the page."""
    program = browser()
    if program is None:
        raise SystemExit("got no Chromium; need one to open the pages in")
    lines = [
        "# How large pictures are, and how soon they are seen",
        "",
        "Every picture is saved as a page and opened by Chromium, without a window, in a process of its own. Making",
        "one includes running the model, except where patterns are random: no two cells alike, which compresses least.",
        "The bundled model has 48 heads, GPT-Neo 125M 144.",
        "",
        "| picture | seconds to make | MB in a notebook | milliseconds until seen |",
        "|---|---|---|---|",
    ]
    lines += [row(name, make, settings.repeats, program) for name, make in pictures(settings.seed)]
    write_page(settings.page, [*lines, "", stamp("show.py", settings.repeats, settings.seed)])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
