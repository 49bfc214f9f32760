"""What reads each kind of input, and uses a little of what it read; each raises InputError or succeeds."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

import mechmem as mm
from mechmem.data.inputs import list_inputs
from mechmem.data.readers import read_text
from mechmem.data.records import Tally
from mechmem.report.study_files import read_study
from mechmem.report.study_report import write_report
from mechmem.study.config import apply_settings, read_config
from mechmem.study.manifest import manifest_settings, missing_stages, read_manifest
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.paper_runner import read_paper_manifest
from mechmem.study.paper.paper_settings import PaperSettings
from mechmem.study.paper.published_files import read_published_files
from mechmem.study.paper.tables import table_rows, trap_rows
from mechmem.study.patch_settings import read_experiment
from mechmem.study.saved_edit import SavedEdit
from tests.fuzzing import samples

Reader = Callable[[Path], Any]


@cache
def model() -> Any:
    """The undamaged tiny model, for what needs one."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name, data in samples.checkpoints()["gpt_neo"].items():
            (Path(folder) / name).write_bytes(data)
        return mm.load_model(folder, device="cpu")


@cache
def paragraphs() -> mm.Paragraphs:
    """A few paragraphs that fit it."""
    generator = torch.Generator().manual_seed(0)
    return mm.Paragraphs(torch.randint(0, 256, (samples.ROWS, samples.LENGTH), generator=generator), samples.PREFIX)


def text(folder: Path) -> None:
    """Every record, skipping what cannot be read and stopping at it."""
    file = next(folder.iterdir())
    tally = Tally()
    records = [record for record in read_text(file, tally)]
    assert all(record.text and record.text.encode() and record.source for record in records)
    assert tally.records == len(records) + sum(tally.skipped.values()), "a record is not accounted for"
    list(read_text(file, Tally(strict=True)))


def corpus(folder: Path) -> None:
    """A file of any kind as a corpus of windows."""
    found = mm.read_corpus(next(folder.iterdir()), model().tokenizer, limit=3)
    assert len(found) and int(found.tokens.min()) >= 0


def table(folder: Path) -> None:
    """Paragraphs, written and read again."""
    found = mm.Paragraphs.load(next(folder.iterdir()))
    assert repr(found) and found._repr_html_() and len(found.ids) == len(found)
    found.save(folder / "again.parquet")
    assert torch.equal(mm.Paragraphs.load(folder / "again.parquet").tokens, found.tokens)


def scored_table(folder: Path) -> None:
    """Paragraphs given to a model."""
    found = mm.Paragraphs.load(next(folder.iterdir()))
    scores = mm.score(model(), found[: samples.ROWS])
    if found.has("em"):
        mm.split(found[: samples.ROWS], scores)


def checkpoint(folder: Path) -> None:
    """A checkpoint that loads also scores, and its text can be encoded and decoded."""
    loaded = mm.load_model(folder, device="cpu")
    length = min(loaded.cfg.n_ctx, samples.LENGTH)
    if length < 4:
        return
    ids = torch.arange(3 * length).reshape(3, length) % loaded.cfg.d_vocab
    mm.score(loaded, mm.Paragraphs(ids, length // 2))
    if loaded.tokenizer is not None:
        tokenizer: Any = loaded.tokenizer
        tokenizer.decode(tokenizer.encode("the boat left", add_special_tokens=False))


def edit(folder: Path) -> None:
    """An edit that loads says what it is and can be applied, and the weights come back."""
    loaded = mm.Edit.load(folder / "edit.safetensors")
    assert repr(loaded) and loaded.count >= 0
    for name, places in loaded.places.items():
        if places is not None:
            sound = places.ndim == 1 and not bool((places.diff() <= 0).any()) and not bool((places < 0).any())
            assert sound and loaded.values[name].shape == places.shape, f"unsound indices of {name} were read"
    original = {name: tensor.clone() for name, tensor in model().state_dict().items()}
    try:
        with loaded.applied(model()):
            mm.score(model(), paragraphs())
    finally:
        now = model().state_dict()
        same = all(torch.equal(now[name], tensor) for name, tensor in original.items())
        if not same:
            model().load_state_dict(original)
        assert same, "the model is changed after the block"


def mask(folder: Path) -> None:
    """A mask that loads is of this model, and masks can be combined."""
    loaded = mm.Mask.load(folder / "mask.safetensors", model())
    assert repr(loaded) and loaded.union(loaded.complement()).count == loaded.total
    assert mm.Mask.random_like(loaded, seed=0).count == loaded.count


def detector(folder: Path) -> None:
    """A detector that loads scores, and has a threshold."""
    loaded = mm.Detector.load(folder)
    rows = torch.zeros(2, len(loaded.names))
    assert repr(loaded) and loaded.threshold(0.1) >= loaded.null[0]
    for k in (0, 7):
        loaded.statistic(2).step(loaded.score(rows, k), k)
    loaded.save(folder / "again")


def edit_checkpoint(folder: Path) -> None:
    """An interrupted edit goes on."""
    samples.interrupted(model(), paragraphs(), folder / "checkpoint.safetensors", resume=True)


def edit_settings(folder: Path) -> None:
    """The settings of a finished edit."""
    saved = SavedEdit(folder)
    assert repr(saved) and isinstance(saved.settings["kind"], str)


def study_json(folder: Path) -> None:
    """The manifest alone: settings, what is missing, the command's config, the report's reader."""
    manifest = read_manifest(folder)
    if manifest is not None:
        manifest_settings(manifest)
        missing_stages(folder, manifest)
        repr(mm.open_study(folder))
    apply_settings(mm.StudySettings(), read_config(folder / "study.json"))


def experiment(folder: Path) -> None:
    """The settings of a patching experiment."""
    read_experiment(folder / "patch.toml")


def config(folder: Path) -> None:
    """A file of settings."""
    apply_settings(mm.StudySettings(), read_config(folder / "study.toml"))


def results(folder: Path) -> None:
    """A study's results, each read and shown as text."""
    study = read_study(folder)
    for value in vars(study).values():
        repr(value)


def report(folder: Path) -> None:
    """The report of a study."""
    assert write_report(folder).is_file()


def dataset(folder: Path) -> None:
    """A dataset on disk, read as text."""
    for part in list_inputs(folder):
        list(part.records(Tally(), "text"))


def corpus_folder(folder: Path) -> None:
    """A folder of tokens that was begun before."""
    found = mm.open_corpus(folder / "a.txt", model().tokenizer, folder / "corpus", shard_tokens=100)
    for number in range(len(found)):
        found.shard(number).tokens.sum()


def published_files(folder: Path) -> None:
    """The study's public files."""
    found = read_published_files(folder)
    assert len(found.memorized) and int(found.memorized.tokens.max()) < 50_257


def repeated_study(folder: Path) -> None:
    """The account of the repeated study, and that of one item, as tables."""
    read_paper_manifest(folder)
    paper = PaperFolder(folder, PaperSettings())
    if paper.left_out("sets") is None:
        rows, traps = paper.account("sets")
        table_rows(rows, applies=True)
        trap_rows(traps, {})
