"""Section 1: what did the model memorize?"""

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from mechmem.report import figures
from mechmem.report.page import Block, Cell, Figure, Passage, Section, Table
from mechmem.report.sections.wording import percent, plural
from mechmem.report.study_files import StudyFiles
from mechmem.show.charts import score_figures

SHOWN_ROWS, NEAR_MISSES = 12, 8
SCORES = "mm.show.scores(mm.score(study.model, study.paragraphs), study.paragraphs)"
KINDS = 'study.paragraphs.table.to_pandas().groupby("source")["set"].value_counts(normalize=True)'
LIMITS = (
    "A full match shows that the model can continue the text from this prefix. It does not show how often the text "
    "has to be seen, and text that is reproduced with small changes does not count.",
    "Only greedy decoding from one prefix was tried: sampling and other prefixes can bring out more.",
)
COLUMNS = {
    "id": "Id",
    "source": "Kind",
    "count": "Seen",
    "cluster": "Cluster",
    "em": "EM",
    "nll": "NLL",
    "match_fraction": "Match",
    "edit_distance": "Edit distance",
}
# All the same in every memorized paragraph.
FULL_MATCH = ("em", "match_fraction", "edit_distance")
READING = (
    "Each paragraph is cut in two. The model is given the prefix and continues it greedily, always with the most "
    "probable token. EM (exact match) counts how many tokens of the true continuation it gets right before its first "
    "mistake.",
    "A paragraph is called memorized if every token of the continuation is right. Ordinary text is not completed by "
    "chance; text that follows a pattern, such as lists and boilerplate, can be, which is why the paragraphs "
    "themselves are shown below.",
    "NLL is the average surprise of the model at the true continuation, in nats per token: lower means that it "
    "expected the text more.",
)


def memorized_section(study: StudyFiles) -> Section:
    """How much is memorized, of which kind and how often it was seen; the paragraphs themselves."""
    name, title = "memorized", "What did it memorize?"
    question = "Which paragraphs does the model continue word for word, given only their beginning?"
    em = study.column("em")
    if study.paragraphs is None or em is None:
        missing = ("Scoring has not been run: there is no paragraphs.parquet with a column em in the study folder.",)
        return Section(name, title, question, (), missing=missing)
    full = study.paragraphs.continuation_len
    exact = xr.DataArray(em, dims="paragraph")
    caption = (
        f"Each bar counts the paragraphs with this many correct tokens before the first mistake; EM = {full} means no "
        "mistake. Further right means more memorized. The vertical axis is logarithmic."
    )
    blocks: list[Block] = [Figure(score_figures.em_histogram(exact, full=full), caption, code=SCORES)]
    blocks += _by_count(study, exact, full) + _by_kind(study)
    blocks += [_paragraph_table(study), *_near_misses(study)]
    return Section(name, title, question, _answer(study, em, full), tuple(blocks), READING, limits=LIMITS)


def _answer(study: StudyFiles, em: np.ndarray, full: int) -> list[str]:
    total, memorized, other = len(em), study.members("memorized"), study.members("other")
    clusters = study.column("cluster")
    groups = (
        f", in {plural(len(np.unique(clusters[memorized])), 'cluster')} of near-identical text"
        if clusters is not None
        else ""
    )
    first = (
        f"The model continues {len(memorized):,} of {plural(total, 'paragraph')} "
        f"({percent(len(memorized) / max(total, 1))}) correctly to the last of their {full} "
        f"tokens{groups if len(memorized) else ''}."
    )
    answer = [
        first,
        f"Of {plural(len(other), 'paragraph')} ({percent(len(other) / max(total, 1))}) it gets at most the first "
        f"{full // 5} tokens right; the median EM is {np.median(em):.0f} tokens.",
    ]
    count = study.counts()
    if count is None:
        return answer
    return answer + _count_sentences(study, em, count) + _never_sentences(study, em == full, count == 0)


def _count_sentences(study: StudyFiles, em: np.ndarray, count: np.ndarray) -> list[str]:
    if len(np.unique(count)) < 2 or len(np.unique(em)) < 2:
        return []
    rho = float(spearmanr(em, count)[0])  # pyright: ignore
    relation = "rises with" if rho > 0.1 else "falls with" if rho < -0.1 else "hardly depends on"
    labels, bins = score_figures.count_bins(count)
    low, high = (float(np.median(em[bins == group])) for group in (0, len(labels) - 1))
    return [
        f"EM {relation} how often a paragraph occurs in the {_counted(study)} (Spearman {rho:.2f}): its median is "
        f"{low:.0f} at {labels[0]} and {high:.0f} at {labels[-1]} occurrences."
    ]


def _never_sentences(study: StudyFiles, exact: np.ndarray, never: np.ndarray) -> list[str]:
    """What is completed although it does not occur in the text: near-duplicates of what does, apart from the rest."""
    related = study.column("cluster_count")
    if not never.any():
        return []
    near = never & (related > 0) if related is not None else np.zeros_like(never)
    fresh = never & ~near
    sentences = []
    if fresh.any():
        guessed = int((fresh & exact).sum())
        verdict = "not every full match is evidence of memory" if guessed else "guessing does not reach a full match"
        sentences.append(
            f"Of the {plural(int(fresh.sum()), 'paragraph')} that have no near-duplicate in the {_counted(study)}, "
            f"{guessed or 'none'} {'is' if guessed < 2 else 'are'} completed to the end: {verdict} here."
        )
    if near.any():
        recited = int((near & exact).sum())
        sentences.append(
            f"Of the {plural(int(near.sum()), 'paragraph')} that do not occur there but are near-duplicates of text "
            f"that does, {recited or 'none'} {'is' if recited < 2 else 'are'} completed to the end."
        )
    return sentences


def _counted(study: StudyFiles) -> str:
    """Where `count` was counted: only a generated corpus comes with the truth about its training text."""
    return "corpus" if study.column("seen") is None else "training text"


def _by_count(study: StudyFiles, em: xr.DataArray, full: int) -> list[Block]:
    count = study.counts()
    if count is None or len(np.unique(count)) < 2:
        return []
    caption = (
        "Above: median EM in tokens and the middle half of the paragraphs; below: the percentage memorized. Higher "
        "means more memorized; further right means seen more often."
    )
    figure = score_figures.em_by_count(em, xr.DataArray(count, dims="paragraph"), full=full)
    return [Figure(figure, caption, wide=study.column("source") is None, code=SCORES)]


def _by_kind(study: StudyFiles) -> list[Block]:
    source = study.column("source")
    if source is None:
        return []
    kinds, index = np.unique(source.astype(str), return_inverse=True)
    size = np.bincount(index)
    memorized = np.bincount(index[study.members("memorized")], minlength=len(kinds))
    coords = {"source": kinds}
    figure = figures.memorized_by_kind(
        xr.DataArray(100 * memorized / size, coords, ("source",)), xr.DataArray(size, coords, ("source",))
    )
    caption = "Percentage of the paragraphs of each kind that are memorized; longer means memorized more often."
    # Beside the figure by count, if there is one, and as high as that one.
    beside = study.counts() is not None
    if beside:
        figure.update_layout(height=max(430, figure.layout.height))
    return [Figure(figure, caption, wide=not beside, code=KINDS)]


def _paragraph_table(study: StudyFiles) -> Table:
    memorized = study.members("memorized")
    count, nll = study.counts(), study.column("nll")
    # The most surprising ones first: text that was seen least often, or else that the model is least sure of.
    keys = count if count is not None else -nll if nll is not None else np.zeros(len(memorized) and memorized.max() + 1)
    chosen = memorized[np.argsort(keys[memorized], kind="stable")][:SHOWN_ROWS]
    order = "those seen least often come first" if count is not None else "those it was least sure of come first"
    note = (
        f"{len(chosen)} of {plural(len(memorized), 'memorized paragraph')}; {order}. Grey is what the model was "
        "given, coloured is what it generated, word for word as in the text. NLL in nats per token. A click or Enter "
        "opens a paragraph. The list above has more."
    )
    return _table(study, chosen, "Some memorized paragraphs", note, constant=FULL_MATCH, opened=len(chosen) > 0)


def _near_misses(study: StudyFiles) -> list[Block]:
    between, greedy = study.members("between"), study.column("greedy_text")
    em = study.column("em")
    if greedy is None or em is None or not len(between):
        return []
    chosen = between[np.argsort(-em[between], kind="stable")][:NEAR_MISSES]
    note = (
        "The paragraphs with the highest EM that are not memorized; under each, what the model generates from the "
        "prefix. EM and edit distance in tokens, NLL in nats per token, match as a share (0 to 1)."
    )
    return [_table(study, chosen, "Near misses", note, said=greedy)]


def _table(
    study: StudyFiles,
    chosen: np.ndarray,
    title: str,
    note: str,
    *,
    constant: tuple[str, ...] = (),
    opened: bool = False,
    said: np.ndarray | None = None,
) -> Table:
    known = {label: study.column(name) for name, label in COLUMNS.items() if name not in constant}
    present = {label: values for label, values in known.items() if values is not None}
    passages = _passages(study, chosen, said)
    rows = [
        [_plain(label, values[row]) for label, values in present.items()] + [passage]
        for row, passage in zip(chosen, passages, strict=True)
    ]
    return Table(title, [*present, "Paragraph"], rows, note, opened=opened)


def _plain(label: str, value: object) -> Cell:
    item = value.item() if isinstance(value, np.generic) else value
    # The number of a paragraph or of a cluster is a name: no thousands are set apart in it.
    name = label in ("Id", "Cluster")
    return item if item is None or isinstance(item, int | float) and not name else str(item)


def _passages(study: StudyFiles, chosen: np.ndarray, said: np.ndarray | None) -> list[Passage]:
    prefix, continuation, text = (study.column(name) for name in ("prefix_text", "continuation_text", "text"))
    own = ["" if said is None else str(said[row]) for row in chosen]
    if prefix is not None and continuation is not None:
        parts = [(str(prefix[row]), str(continuation[row])) for row in chosen]
    elif text is not None:
        parts = [(str(text[row]), "") for row in chosen]
    else:
        parts = [("(the study folder holds no text)", "")] * len(chosen)
    return [Passage(*part, said) for part, said in zip(parts, own, strict=True)]
