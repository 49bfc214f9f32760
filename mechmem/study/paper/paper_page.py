"""The page of the repeated study: every published number beside the measured one, the traps, the figures."""

from __future__ import annotations

from collections import Counter

from mechmem.report.page import Block, Card, Figure, Page, Section, Table, write_page
from mechmem.report.paper.drawing import Drawing
from mechmem.report.paper.drawings import DRAWINGS
from mechmem.report.paper.svg import write_svgs
from mechmem.study.paper.items import ITEMS
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.rows import CANNOT_BE_SAID, DIFFERS, REPRODUCED, Reading, Row, Trap, verdict
from mechmem.study.paper.tables import COLUMNS, TRAP_COLUMNS, headlines_and_layers, table_rows, trap_rows
from mechmem.study.paper.wording import WORDING

PAGE, FIGURES = "paper.html", "figures"
TERMS = (
    ("published", "the value in Stoehr et al. (2024, arXiv 2403.19851v1)"),
    ("as published", "measured with the recipe of the study's public code, slips included"),
    ("corrected", "measured as the study's text says or means it"),
    ("95 %", "interval by clusters of near-duplicate paragraphs"),
    ("reproduced", "the published value lies in the interval, or equals the measured one to its number of decimals"),
    ("cannot be said", "there is no interval, or the published numbers do not apply to this model"),
    ("EM", "exact match: leading continuation tokens that greedy decoding reproduces"),
    ("NLL", "mean negative log-likelihood of the continuation, nats per token"),
)


def write_paper_page(paper: PaperFolder) -> str | None:
    """Write `paper.html` and `figures/NAME.svg` from the folder's files alone.

    Returns:
        None, or why there are no SVG files, in words.
    """
    drawings = {name: _drawings(paper, name) for name in ITEMS}
    problem = write_svgs(paper.folder / FIGURES, [drawing for found in drawings.values() for drawing in found])
    with paper.writing(PAGE):
        write_page(paper.folder / PAGE, _page(paper, drawings))
    return problem


def paper_rows(paper: PaperFolder) -> list[Row]:
    """The rows of every item that was measured."""
    return [row for name in ITEMS for row in paper.account(name)[0]]


def verdicts(rows: list[Row], *, applies: bool, reading: Reading) -> Counter[str]:
    """How many published numbers have each verdict in a reading."""
    found = Counter(verdict(row, applies) for row in rows if row.reading == reading and row.published is not None)
    return Counter({name: found[name] for name in (REPRODUCED, DIFFERS, CANNOT_BE_SAID)})


def _drawings(paper: PaperFolder, name: str) -> list[Drawing]:
    if name not in DRAWINGS or paper.left_out(name) is not None:
        return []
    return DRAWINGS[name](paper.data(name))


def _page(paper: PaperFolder, drawings: dict[str, list[Drawing]]) -> Page:
    check, rows = paper.sets.check, paper_rows(paper)
    left_out = {name: reason for name in ITEMS if (reason := paper.left_out(name)) is not None}
    traps = [trap for name in ITEMS for trap in paper.account(name)[1]]
    groups = ", ".join(f"{len(found):,} of EM {name}" for name, found in paper.sets.groups.items())
    return Page(
        "Localizing paragraph memorization, repeated",
        "Every figure and table of Stoehr et al. (2024) measured again, as published and corrected.",
        (f"model {paper.settings.model}", paper.sets.source, groups, f"seed {paper.seed}"),
        _cards(rows, traps, applies=check.applies),
        [
            _model_section(paper),
            *(_item_section(paper, name, drawings[name]) for name in ITEMS),
            _trap_section(traps, left_out),
        ],
        TERMS,
    )


def _cards(rows: list[Row], traps: list[Trap], *, applies: bool) -> list[Card]:
    cards = []
    readings: tuple[Reading, Reading] = ("as published", "corrected")
    for reading in readings:
        found = verdicts(rows, applies=applies, reading=reading)
        note = f"{found[DIFFERS]} differ, {found[CANNOT_BE_SAID]} cannot be said"
        note = note if applies else "the published numbers do not apply to this model"
        cards.append(Card(f"Reproduced, {reading}", f"{found[REPRODUCED]} of {found.total()}", note))
    return [*cards, Card("Traps measured", f"{len(traps)} of 14", "the last section shows what each changes")]


def _model_section(paper: PaperFolder) -> Section:
    check = paper.sets.check
    said = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in check.sentences]
    verdict_said = (
        "Published numbers apply to this model."
        if check.applies
        else "Published numbers do not apply: they are shown, and no verdict is given."
    )
    first = [verdict_said, *[sentence for sentence in said if "do not apply" not in sentence]]
    return Section("model", "The model", "Is this the study's model?", first)


def _item_section(paper: PaperFolder, name: str, drawings: list[Drawing]) -> Section:
    words, reason = WORDING[name], paper.left_out(name)
    if reason is not None:
        return Section(name, words.title, words.question, (), (), words.reading, (f"Not measured: {reason}.",))
    rows, _ = paper.account(name)
    applies = paper.sets.check.applies
    headlines, by_layer = headlines_and_layers(rows)
    details = table_rows(by_layer, applies=applies)
    blocks: list[Block] = [
        Table("Published and measured", COLUMNS, table_rows(headlines, applies=applies), opened=True),
        *([Table("By layer", COLUMNS, details)] if details else []),
        *(Figure(d.figure, d.reading, d.wide) for d in drawings),
    ]
    said = paper.data(name).attrs.get("finding", "")
    return Section(name, words.title, words.question, [said] if said else [], blocks, words.reading)


def _trap_section(traps: list[Trap], left_out: dict[str, str]) -> Section:
    return Section(
        "traps",
        "Fourteen traps",
        "Where does the public code depart from the paper, or mislead, and how much does it change?",
        [f"{len(traps)} of the 14 traps were measured on this model and these paragraphs."],
        [Table("What each changes", TRAP_COLUMNS, trap_rows(traps, left_out), opened=True)],
    )
