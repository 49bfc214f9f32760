"""The page of a head's report: the verdict, its tests, and its attention on some paragraphs of each set."""

from __future__ import annotations

import xarray as xr

from mechmem.model.head_names import parsed_heads
from mechmem.report.page import Block, Card, Cell, Page, Section, Table, View
from mechmem.show.patterns.attention_picture import attention_picture
from mechmem.show.patterns.attention_side import Side
from mechmem.show.token_labels import shortened

SETS = {"memorized": "memorized", "perturbed": "the same with one token replaced", "other": "not memorized"}


def head_page(report: xr.Dataset) -> Page:
    """What `head_report` gave, as a page.

    Args:
        report: of one head.
    """
    name = str(report.attrs["head"])
    words = {1: "yes", 0: "not shown"}
    cards = [
        Card("Attends to rare tokens", words[int(report.attrs["attends"])]),
        Card("Matters", words[int(report.attrs["matters"])], "its removal makes the memorized text less likely"),
        Card("Matters at rare tokens", words[int(report.attrs["at_rare_tokens"])]),
    ]
    return Page(
        title=f"Head {name}",
        lead="Whether it attends to rare tokens, and whether that matters.",
        facts=[f"one of {report.attrs['heads']} heads", f"removed by {report.attrs['method']}"],
        cards=cards,
        sections=[_tests(report), _views(report, name)],
    )


def _tests(report: xr.Dataset) -> Section:
    rows: list[list[Cell]] = []
    for test in report.test.values:
        one = report.sel(test=test)
        ends = [float(one[key]) for key in ("nll_mean", "nll_low", "nll_high")]
        rows.append([f"its {test}", *ends, float(one.em_change.mean())])
    ranks: list[list[Cell]] = [list(str(entry).split(": ")) for entry in report.attrs["ranks"]]
    tests = Table(
        "Without", ["without", "NLL change, nats per token", "low", "high", "EM change, tokens"], rows, opened=True
    )
    told = str(report.attrs["verdict"]).split(". ")
    said = [sentence if sentence.endswith(".") else f"{sentence}." for sentence in told]
    return Section(
        "verdict",
        "Verdict",
        "What was shown, and what was not?",
        said[::-1][:1] + said[:-1],
        [tests, Table("Ranks among all heads", ["measure", "rank"], ranks)],
    )


def _views(report: xr.Dataset, name: str) -> Section:
    pair = parsed_heads([name])[0]
    assert pair is not None
    sides = []
    for number in range(report.sizes["view"]):
        one = report.isel(view=number)
        text = [shortened(str(token)) or "∅" for token in one.text.values]
        title = f"{SETS[str(one.view_set.item())]}, paragraph {one.paragraph_id.item()}"
        sides.append([Side(title, [pair], text, None, None, one.pattern.values[None].astype(float))])
    reading = "Darker means more attention; point at a token or a cell for its value; choose a paragraph above."
    blocks: list[Block] = [View(f"Attention of {name}", attention_picture(sides), reading)] if sides else []
    return Section("attention", "Attention", "Where does it look?", [f"{len(sides)} paragraphs."], blocks)
