"""The report of a study: five questions, a sixth if it has a detector, answered from its files alone."""

from pathlib import Path

import numpy as np

from mechmem.data.files import check_output
from mechmem.data.folder_lock import only_writer
from mechmem.report.page import Page, View, write_page
from mechmem.report.sections.answers import basis, summary
from mechmem.report.sections.attention import attention_section
from mechmem.report.sections.detection import detection_section
from mechmem.report.sections.memorized import memorized_section
from mechmem.report.sections.removal import removal_section
from mechmem.report.sections.run import mapping, run_section
from mechmem.report.sections.where import where_section
from mechmem.report.study_files import StudyFiles, read_study
from mechmem.report.study_view import study_view

LEAD = (
    "{count} answers first, then the paragraphs themselves, then one section for each question with the data behind "
    "its answer."
)
TERMS = (
    ("prefix, continuation", "the tokens that the model is given, and those that follow them in the text"),
    ("EM", "exact match: how many tokens of the continuation the model gets right before its first mistake"),
    ("memorized", "every token of the continuation is right"),
    ("other", "the first mistake comes within the first fifth of the continuation"),
    (
        "cluster",
        "paragraphs that share a long run of tokens; counted and split together, one observation for an interval",
    ),
    ("NLL", "mean negative log-likelihood of the continuation, in nats per token: lower means better predicted"),
    ("KL", "how far an edited model's predictions are from the original's, in nats per token"),
    ("head", "one of the attention units of a layer; L1H2 is the third head of the second layer"),
    ("ablation", "a head's output is replaced by a constant, to measure what the model can no longer do"),
    ("recitation", "the model says the continuation of a paragraph word for word while it decodes"),
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
    questions = (memorized_section, where_section, attention_section, removal_section, detection_section, run_section)
    sections = [section for build in questions if (section := build(study)) is not None]
    answers = summary(study)
    name = mapping(study.manifest, "model").get("name", "the model")
    model = "the bundled model" if name == "bundled" else name
    return Page(
        title=f"What {model} memorized",
        lead=LEAD.format(count="Six" if len(answers) > 5 else "Five"),
        facts=_facts(study),
        cards=(),
        sections=sections,
        terms=TERMS,
        answers=answers,
        basis=basis(study),
        view=_view(study),
    )


def _view(study: StudyFiles) -> View | None:
    """The list of paragraphs; None before any was scored."""
    if study.column("em") is None:
        return None
    reading = (
        "Click a paragraph, or use the arrow keys: its text, the loss of each token, what a patch restores and what "
        "the heads attend to are shown below the list. Paragraphs marked ● were patched, or their attention was kept."
    )
    return View("The paragraphs", study_view(study), reading, "study.show()")


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
