"""`mechmem evaluate`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mechmem.cli.commands import command, console, wrote
from mechmem.cli.display import live_progress
from mechmem.cli.options import Device, Out, StudyCorpus, StudyModel
from mechmem.cli.studies import opened_study, study_settings


@command()
def evaluate(
    edit: Annotated[str, typer.Argument(help="The edit's name: a folder of OUT/edits.")],
    out: Out = Path("study"),
    model: StudyModel = None,
    corpus: StudyCorpus = None,
    device: Device = None,
    attacks: Annotated[bool, typer.Option(help="Also try to get the targets back.")] = True,
    oracle: Annotated[
        str | None, typer.Option(help="A model of this recipe that never read the targets: adds the distance to it.")
    ] = None,
    oracle_scale: Annotated[
        str | None, typer.Option(help="A model trained on all the text with another seed: the unit of that distance.")
    ] = None,
) -> None:
    """Measure what an edit cost on every set, and attack it; writes costs.nc and attacks.nc into OUT/edits/EDIT."""
    study = opened_study(out, study_settings(out, model=model, corpus=corpus), device=device)
    from mechmem.intervene.card import BESIDE_ORACLE, cost_rows
    from mechmem.model.load import load_model
    from mechmem.study.edits import attack_edit, can_attack, evaluate_edit, saved_edit

    saved = saved_edit(study, edit)
    beside = [None if name is None else load_model(name, device=device) for name in (oracle, oracle_scale)]
    with live_progress() as progress:
        report = functools.partial(progress, "evaluating")
        costs = evaluate_edit(study, edit, oracle=beside[0], oracle_scale=beside[1], progress=report)
        if attacks and can_attack(study, saved):
            attack_edit(study, edit, progress=lambda done, total: progress("attacking", done, total))
    tables = {f"What {edit} cost": cost_rows(costs)}
    if oracle is not None:
        tables["Beside the oracle"] = cost_rows(costs, BESIDE_ORACLE)
    for title, (head, rows) in tables.items():
        table = Table(*head, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if saved.attacks is not None:
        table = Table("attack", "EM before", "EM after", "95 %", title="What attacks recover, tokens")
        for name in saved.attacks.attack.values:
            one = saved.attacks.sel(attack=name)
            interval = f"{float(one.em_after_low):.1f} to {float(one.em_after_high):.1f}"
            table.add_row(str(name), f"{float(one.em_before):.1f}", f"{float(one.em_after):.1f}", interval)
        console.print(table)
    wrote(saved.folder)
