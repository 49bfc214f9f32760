"""Whether a head's report finds a planted head at the shape of GPT-Neo 125M, and nothing where labels are shuffled.

    python experiments/head_report.py      # minutes; writes docs/head-report.md and results/head-report

Head 2 of layer 1 is planted: it attends to the rarest token of the prefix, and what it reads there is all that the
memories need. Its silent double attends in the same way and writes nothing. With shuffled labels (other paragraphs,
permuted counts) a head that is found is found by chance: the corrected p-value should be below 0.05 in at most 5 % of
cases.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
import xarray as xr
from outputs import save, stamp, write_page
from scipy.stats import binomtest

import mechmem as mm
from mechmem.data.bounds import Count, Level, Seed, check_fields
from mechmem.truth.planted import Planted


@dataclass(frozen=True)
class Settings:
    """What decides the numbers. The model and its text are planted, so neither is a setting.

    Attributes:
        seed: of the planted model.
        n_layers: of the model, as the other sizes; by default those of GPT-Neo 125M.
        n_heads: of a layer.
        d_model: width of the residual stream.
        d_mlp: neurons of a layer.
        d_vocab: tokens.
        memories: paragraphs that it reproduces.
        others: paragraphs that it does not.
        nulls: shuffles of which the screening of all heads is run.
        reports: of these, how many whole reports are made.
        level: of the test.
        out: folder of the results.
        page: the table, or None.
    """

    seed: Seed = 0
    n_layers: Count = 12
    n_heads: Count = 12
    d_model: Count = 768
    d_mlp: Count = 3072
    d_vocab: Count = 50_257
    memories: Count = 8
    others: Count = 16
    nulls: Count = 100
    reports: Count = 2
    level: Level = 0.05
    out: Path = Path("results/head-report")
    page: Path | None = Path("docs/head-report.md")

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def planted(self) -> mm.PlantedSettings:
        """Of the model."""
        names = ("seed", "n_layers", "n_heads", "d_model", "d_mlp", "d_vocab", "memories", "others")
        return mm.PlantedSettings(layer=1, head=2, **{name: getattr(self, name) for name in names})


def report(truth: Planted, head: str | tuple[int, int] = "all") -> xr.Dataset:
    """The report on one head, or on the strongest."""
    return mm.head_report(truth.model, truth.memorized, truth.other, head=head, counts=truth.unigram_counts)


def screen(truth: Planted) -> float:
    """The lowest corrected p-value of all heads."""
    return float(mm.rare_token_attention(truth.model, truth.memorized, truth.unigram_counts).p_value.min())


def main(settings: Settings) -> xr.Dataset:
    """Report on the planted head, its double and shuffled labels.

    Args:
        settings: what decides the numbers.

    Returns:
        lowest_p [null], of all heads; found [report], whether the report of a null names a head that attends and
        matters. attrs: head, verdict, and double, the verdict on the silent double.
    """
    truth = mm.planted(settings.planted)
    whole, double = report(truth), report(truth, truth.silent)
    lowest, found = [], []
    for number in range(settings.nulls):
        null = truth.null(number)
        lowest.append(screen(null))
        if number < settings.reports:
            one = report(null)
            found.append(bool(one.attrs["attends"] and one.attrs["matters"]))
    result = xr.Dataset(
        {
            "lowest_p": ("null", np.array(lowest), {"units": "1", "higher": "more likely by chance"}),
            "found": ("report", np.array(found)),
        },
        attrs={"head": whole.attrs["head"], "verdict": whole.attrs["verdict"], "double": double.attrs["verdict"]},
    )
    save(result, [], settings)
    write_page(settings.page, page(settings, result, whole, double))
    return result


def page(settings: Settings, result: xr.Dataset, whole: xr.Dataset, double: xr.Dataset) -> list[str]:
    """What was found, for the docs."""
    below = int((result.lowest_p < settings.level).sum())
    ends = binomtest(below, settings.nulls).proportion_ci(method="exact")
    shape = f"{settings.n_layers} layers of {settings.n_heads} heads, d_model {settings.d_model}"
    rows = [
        ('head that `head_report(head="all")` names', whole.attrs["head"]),
        ("heads that attend to rare tokens, with the NLL change without each", ", ".join(whole.attrs["screened"])),
        ("the verdict", whole.attrs["verdict"]),
        ("the verdict on its silent double", double.attrs["verdict"]),
        (
            f"shuffled labels: any head with a corrected p below {settings.level:g}",
            f"{below} of {settings.nulls}; exact 95 % interval of the share {ends.low:.1%} to {ends.high:.1%}",
        ),
        (
            "shuffled labels: reports that name a head that attends and matters",
            f"{int(result.found.sum())} of {settings.reports}",
        ),
    ]
    return [
        "# A head's report on a planted model",
        "",
        f"{stamp('head_report')}, seed {settings.seed}; a planted model of {shape}, {settings.memories} memorized and "
        f"{settings.others} other paragraphs.",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
