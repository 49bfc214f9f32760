"""A small repetition of the study on the bundled model, and small files of the form of the study's public ones."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mechmem.data.assets import bundled_paragraphs
from mechmem.study.paper.items import ITEMS
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.paper_runner import run_paper
from mechmem.study.paper.paper_settings import PaperSettings

SMALL = PaperSettings(
    model="bundled",
    limit=60,
    perturbed=2,
    pairs=2,
    gradient_sample=4,
    activation_sample=2,
    targets=2,
    kept=2,
    steps=2,
    repeats=1,
    head_sample=4,
    noise_scales=(1.0,),
    noise_draws=1,
    permutations=20,
    draws=50,
)


# Fine-tuning takes as long as all others; tests/study/test_paper_interventions.py measures it on a smaller model.
MEASURED = {name: item for name, item in ITEMS.items() if name != "finetuning"}


@pytest.fixture(scope="session")
def small_paper(tmp_path_factory) -> PaperFolder:
    """Finished; leave it as it is."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mechmem.show.charts.chart_svg.browser", lambda: None)
        for place in ("paper_runner", "paper_page"):
            patched.setattr(f"mechmem.study.paper.{place}.ITEMS", MEASURED)
        return run_paper(tmp_path_factory.mktemp("paper") / "paper", SMALL)


@pytest.fixture
def published_folder(tmp_path) -> Callable[..., Path]:
    """Make a folder of the study's form: bundled paragraphs as rows; any file replaced, or left out by None."""

    def make(**changed: np.ndarray | None) -> Path:
        tokens = bundled_paragraphs().tokens[:30].numpy().astype(np.int32)
        perturbed = tokens[:4].copy()
        perturbed[:, 7] = (perturbed[:, 7] + 1) % 200
        perturbed[:, 60] = (perturbed[:, 60] + 1) % 200
        arrays = {
            "em50": tokens[:12],
            "em30_49": tokens[12:16],
            "em11_29": tokens[16:22],
            "pairs_memorized": tokens[:4],
            "pairs_perturbed": perturbed,
        } | changed
        folder = tmp_path / "published"
        folder.mkdir(exist_ok=True)
        for name, array in arrays.items():
            if array is not None:
                np.save(folder / f"{name}.npy", array)
        with (folder / "memorized.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["paragraph", "id", "count", "em", "nll"])
            writer.writerows([f"line one\r\nline {row}", row, 3 + row, 50.0, 0.25] for row in range(len(tokens[:12])))
        return folder

    return make
