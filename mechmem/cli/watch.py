"""`mechmem watch`."""

from __future__ import annotations

import itertools
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechmem.cli.choices import WatchAction
from mechmem.cli.commands import command, console, errors
from mechmem.cli.options import Device
from mechmem.cli.spoken_output import Decode, draw, write_lines
from mechmem.data import bounds
from mechmem.data.bounds import Amount, Count, Level
from mechmem.data.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from mechmem.data.paragraphs import Paragraphs
    from mechmem.detect.detector import Detector
    from mechmem.detect.monitor.monitor import Monitor
    from mechmem.model.load import HookedTransformer

DECODING = "Decoding"


@dataclass(frozen=True)
class DecodingOptions:
    """How the model decodes."""

    max_new_tokens: Annotated[Count, typer.Option(help="Say at most so many tokens.", rich_help_panel=DECODING)] = 50
    temperature: Annotated[
        Amount, typer.Option(help="0: always the most probable token; 1: as the model says.", rich_help_panel=DECODING)
    ] = 0.0
    top_k: Annotated[
        Count | None, typer.Option(help="Sample among so many tokens; by default all.", rich_help_panel=DECODING)
    ] = None
    seed: Annotated[bounds.Seed, typer.Option(help="Of sampling.", rich_help_panel=DECODING)] = 0


@dataclass(frozen=True)
class ActionOptions:
    """What is done about recitations, and when."""

    action: Annotated[
        WatchAction,
        typer.Option(help="At the alarm: only mark it, stop, or turn down --heads; block: never complete a known run."),
    ] = "flag"
    false_alarms: Annotated[Level, typer.Option(help="Alarms in at most this share of other generations.")] = 0.01
    memorized: Annotated[
        Path | None, typer.Option(help="Of block: paragraphs (.parquet, .npy); by default the memorized ones of OUT.")
    ] = None
    heads: Annotated[str | None, typer.Option(help="Of steer: heads to turn down, such as L1H2,L3H0.")] = None

    def check(self, out: Path) -> None:
        """Refuse what the action lacks or does not use.

        Raises:
            InputError: as said.
        """
        if self.memorized is not None and self.action != "block":
            raise InputError(f"got --memorized with --action {self.action}; need --action block with it")
        if self.heads is not None and self.action != "steer":
            raise InputError(f"got --heads with --action {self.action}; need --action steer with it")
        if self.action == "steer" and self.heads is None:
            raise InputError("got --action steer without --heads; need the heads to turn down, such as --heads L1H2")
        if self.action == "block" and self.memorized is None and not (out / "paragraphs.parquet").is_file():
            raise InputError(
                f"got --action block without --memorized, and {out} holds no paragraphs.parquet; need a file of "
                "memorized paragraphs: --memorized FILE"
            )

    def head_names(self) -> tuple[str, ...] | None:
        """The heads, one by one.

        Raises:
            InputError: a name that is none of a head.
        """
        if self.heads is None:
            return None
        names = tuple(part.strip() for part in self.heads.split(","))
        if not all(re.fullmatch(r"L\d{1,6}H\d{1,6}", name) for name in names):
            raise InputError(f"got the heads {self.heads!r}; need names such as L1H2,L3H0 (both numbers from zero)")
        return names


@command()
def watch(
    what: ActionOptions,
    decoding: DecodingOptions,
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; - reads it from standard input.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Hub name, folder or 'bundled'; by default that of the study in OUT, or 'bundled'."),
    ] = None,
    detector: Annotated[
        Path | None, typer.Option(help="A folder that `mechmem detect` wrote; by default OUT/detector.")
    ] = None,
    paragraph: Annotated[
        str | None, typer.Option(help="Instead of a prompt: the prefix of the paragraph with this id in OUT.")
    ] = None,
    out: Annotated[Path, typer.Option(help="A study's folder.")] = Path("study"),
    jsonl: Annotated[bool, typer.Option("--jsonl", help="A JSON object a token, and one at the end.")] = False,
    device: Device = None,
) -> None:
    """Decode a prompt, and colour each token, as it is said, by a detector's score. Writes no file.

    Each token is coloured by the score that the detector gave when it was about to be said, from pale to red; the
    moment of the alarm is marked. In a pipe, and with NO_COLOR, it is plain text.
    """
    given = _prompt(prompt, paragraph)
    what.check(out)
    heads = what.head_names()
    folder = out / "detector" if detector is None else detector
    _check_detector(folder)
    # Standard output is the reader's alone with --jsonl.
    with (errors if jsonl else console).status("loading"):
        from mechmem.detect.detector import Detector
        from mechmem.model.load import load_model

        known = Detector.load(folder)
        loaded = load_model(model or _study_model(out), processing="raw", device=device)
        monitor = _monitor(known, loaded, what, heads, out)
        start = given if paragraph is None else _prefix(out, paragraph)
        options = {"temperature": decoding.temperature, "top_k": decoding.top_k, "seed": decoding.seed}
        stream = monitor.stream(start, decoding.max_new_tokens, **options)
        # States that the detector cannot read show at the first step: refused before anything is written.
        first = list(itertools.islice(stream, 1))
    tokens = itertools.chain(first, stream)
    decode = _decoder(loaded)
    if jsonl:
        facts = {"action": what.action, "false_alarms": what.false_alarms, "threshold": monitor.threshold}
        write_lines(tokens, decode, facts)
    else:
        shown = start if isinstance(start, str) else decode(start.tolist())
        draw(tokens, shown, decode, what.action, decoding.max_new_tokens)


def _monitor(
    detector: Detector, model: HookedTransformer, what: ActionOptions, heads: tuple[str, ...] | None, out: Path
) -> Monitor:
    """A monitor that does what was asked for."""
    from mechmem.detect.monitor.monitor import Monitor

    memorized = _memorized(what.memorized or out / "paragraphs.parquet") if what.action == "block" else None
    return Monitor(detector, model, what.action, false_alarms=what.false_alarms, heads=heads, memorized=memorized)


def _prompt(prompt: str | None, paragraph: str | None) -> str:
    """The text to continue; with a paragraph, nothing.

    Raises:
        InputError: none, two, no text, or text that is no Unicode.
    """
    if (prompt is None) == (paragraph is None):
        both = "a prompt and --paragraph" if prompt is not None else "no prompt"
        raise InputError(f'got {both}; need one of them: mechmem watch "The text to continue", or --paragraph ID')
    if paragraph is not None:
        return ""
    text = prompt or ""
    if text == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"standard input is not UTF-8 ({error}); need text") from None
        # What echo and editors add.
        text = text.removesuffix("\n")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"got the prompt {text!r:.80}, which is not Unicode; need text that UTF-8 can hold")
    if not text:
        raise InputError("got an empty prompt; need at least 1 token of text")
    return text


def _check_detector(folder: Path) -> None:
    """Refuse a folder without a detector before anything is loaded.

    Raises:
        InputError: as said.
    """
    if not os.path.isfile(folder / "detector.json"):  # noqa: PTH113
        raise InputError(
            f"{folder}: holds no detector; train one with `mechmem detect --out STUDY`, and name its folder with "
            "--detector STUDY/detector"
        )


def _study_model(out: Path) -> str:
    """The model of the study in a folder; "bundled" where there is none."""
    from mechmem.study.manifest import manifest_settings, read_manifest

    manifest = read_manifest(out)
    return "bundled" if manifest is None else manifest_settings(manifest).model


def _prefix(out: Path, identity: str) -> Tensor:
    """The prefix of one paragraph of a study, [pos].

    Raises:
        InputError: no study, or no single paragraph of this id.
    """
    from mechmem.report.study_contents import SCORES, read_paragraphs

    if not (out / SCORES).is_file():
        raise InputError(f"{out}: holds no {SCORES}; need a scanned study with --out for --paragraph")
    paragraphs = read_paragraphs(out)
    rows = [row for row, known in enumerate(paragraphs.ids.tolist()) if str(known) == identity]
    if len(rows) != 1:
        raise InputError(f"{out}: has {len(rows)} paragraphs with the id {identity!r:.40}; need 1")
    return paragraphs.prefix[rows[0]]


def _memorized(path: Path) -> Paragraphs:
    """The paragraphs of a file; where it says which are memorized, as a study's does, those alone.

    Raises:
        InputError: none.
    """
    import numpy as np

    from mechmem.data.paragraphs import Paragraphs

    paragraphs = Paragraphs.load(path)
    if paragraphs.has("set"):
        paragraphs = paragraphs.select(np.flatnonzero(paragraphs.column("set").astype(str) == "memorized"))
    if not len(paragraphs):
        raise InputError(f"{path}: holds no memorized paragraph; need at least 1 to block")
    return paragraphs


def _decoder(model: HookedTransformer) -> Decode:
    """Token ids as text; as numbers where the model has no tokenizer."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return lambda ids: "".join(f" {token}" for token in ids)
    return lambda ids: str(tokenizer.decode(list(ids)))
