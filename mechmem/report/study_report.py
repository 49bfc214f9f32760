"""The report of a study: five questions, answered from the files of its folder alone."""

from pathlib import Path

import numpy as np

from mechmem.data.files import check_output
from mechmem.data.folder_lock import only_writer
from mechmem.report.page import Card, Page, write_page
from mechmem.report.sections.attention import attention_section
from mechmem.report.sections.memorized import memorized_section, paragraph_counts
from mechmem.report.sections.removal import HELD_OUT, ORIGINAL, OTHER, TARGETS, em_of, first_edit, removal_section
from mechmem.report.sections.run import mapping, run_section
from mechmem.report.sections.where import where_section
from mechmem.report.sections.wording import best_heads, percent, signed
from mechmem.report.study_files import StudyFiles, read_study

TERMS = (
    ("prefix, continuation", "the tokens that the model is given, and those that follow them in the text"),
    ("EM", "exact match: how many tokens of the continuation the model gets right before its first mistake"),
    ("memorized", "every token of the continuation is right"),
    ("other", "the first mistake comes within the first fifth of the continuation"),
    ("cluster", "paragraphs that share a long run of tokens; they are counted, split and resampled together"),
    ("NLL", "mean negative log-likelihood of the continuation, in nats per token: lower means better predicted"),
    ("KL", "how far an edited model's predictions are from the original's, in nats per token"),
    ("head", "one of the attention units of a layer; L1H2 is the third head of the second layer"),
    ("ablation", "a head's output is replaced by a constant, to measure what the model can no longer do"),
    ("mask", "the weights that an edit may change; all others stay the same bit for bit"),
)


def write_report(study_folder: str | Path) -> Path:
    """Write `report.html` into a study folder from the files in it, and return its path.

    A stage whose file is missing gets a sentence that says so. The page is one file and loads nothing.

    Raises:
        InputError: there is no such folder, it holds no study, a file of it cannot be read or was damaged or changed
            after it was written, or another process works in the folder.
    """
    folder = Path(study_folder)
    study = read_study(folder)
    check_output(folder / "report.html")
    page = study_page(study)
    with only_writer(folder):
        return write_page(folder / "report.html", page)


def study_page(study: StudyFiles) -> Page:
    """The page of what a study has written so far."""
    sections = [
        build(study) for build in (memorized_section, where_section, attention_section, removal_section, run_section)
    ]
    name = mapping(study.manifest, "model").get("name", "the model")
    model = "the bundled model" if name == "bundled" else name
    lead = (
        "Which paragraphs the model reproduces, which heads and weights they depend on, and what unlearning them "
        "costs. Each section asks a question, answers it with numbers and shows the data behind the answer."
    )
    return Page(f"What {model} memorized", lead, _facts(study), summary_cards(study), sections, TERMS)


def summary_cards(study: StudyFiles) -> list[Card]:
    """The numbers on top; a dash where the stage has not been run."""
    return [*_scan_cards(study), _head_card(study), *_removal_cards(study)]


def _scan_cards(study: StudyFiles) -> list[Card]:
    em = study.column("em")
    if study.paragraphs is None or em is None:
        return [
            Card(label, "–", "not run yet")
            for label in ("Paragraphs scored", "Memorized", "Clusters of memorized text")
        ]
    total, memorized, clusters = paragraph_counts(study)
    length, given = study.paragraphs.continuation_len, study.paragraphs.prefix_len
    return [
        Card("Paragraphs scored", f"{total:,}", f"{given} tokens given, {length} to continue"),
        Card("Memorized", f"{memorized:,}", f"{percent(memorized / max(total, 1))}, all {length} tokens right"),
        Card(
            "Clusters of memorized text",
            "–" if clusters is None else f"{clusters:,}",
            "near-identical text counted once",
        ),
    ]


def _head_card(study: StudyFiles) -> Card:
    if study.heads is None or "memorized" not in study.heads.set.values:
        return Card("Most needed head", "–", "not run yet")
    (name, drop), *_ = best_heads(-study.heads.em_change.sel(set="memorized"), 1)
    return Card("Most needed head", name, f"without it EM changes by {signed(-drop)} tokens on memorized text")


def _removal_cards(study: StudyFiles) -> list[Card]:
    labels = ("EM of the targets after unlearning", "EM of other text after unlearning")
    unlearned = study.unlearned
    if unlearned is None:
        return [Card(label, "–", "not run yet") for label in labels]
    edit = first_edit(unlearned)
    cards = []
    for label, name in zip(labels, (TARGETS, OTHER), strict=True):
        before, after = em_of(unlearned, ORIGINAL, name), em_of(unlearned, edit, name)
        if before is None or after is None:
            cards.append(Card(label, "–", "this set was not evaluated"))
            continue
        note = f"before → after, {edit}"
        held_out = em_of(unlearned, edit, HELD_OUT)
        if name == TARGETS and held_out is not None:
            note = f"{edit}; memorized text not targeted: {held_out:.1f}"
        elif name == OTHER:
            note = f"{signed(after - before)} tokens; higher is better kept"
        cards.append(Card(label, f"{before:.1f} → {after:.1f}", note))
    return cards


def _facts(study: StudyFiles) -> list[str]:
    """The model's size, the weights' processing and the day, as far as the manifest knows them."""
    manifest, model = study.manifest or {}, mapping(study.manifest, "model")
    facts = [str(model["name"])] if "name" in model else []
    if isinstance(number := model.get("n_params"), int | float) and np.isfinite(number):
        facts.append(f"{number / 1e6:,.1f} M parameters")
    if "n_layers" in model and "n_heads" in model:
        facts.append(f"{model['n_layers']} layers × {model['n_heads']} heads")
    if "processing" in model:
        facts.append(f"{model['processing']} weights")
    if corpus := mapping(manifest, "corpus").get("name"):
        facts.append(f"corpus: {corpus}")
    if day := manifest.get("finished") or manifest.get("created"):
        facts.append(str(day)[:10])
    return facts
