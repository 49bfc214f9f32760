"""What `mechmem watch` writes: colours where a terminal has them, plain text elsewhere, JSON for programs."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from mechmem.cli import spoken_output
from mechmem.cli.live_text import LIGHT, PALE, RED, LiveText, harmless, score_style
from mechmem.cli.spoken_output import Account, Joined, draw, write_lines
from mechmem.detect.monitor.stream import SpokenToken

WORDS = ["It", " was", " 50\x1b[31m", " red\n", " now"]


def tokens(flagged_from: int = 2, stopped: bool = False) -> list[SpokenToken]:
    said = [SpokenToken(k, word, 0.2 * k, 1 / (k + 1), k >= flagged_from, k) for k, word in enumerate(WORDS)]
    return said[:3] + [SpokenToken(None, "", 0.9, 0.01, True, 3)] if stopped else said


def decode(ids) -> str:
    return "".join(WORDS[token] for token in ids)


def drawn(console: Console) -> str:
    text = LiveText(console)
    text.begin("A prompt")
    for token in tokens():
        text.add(token.text, token.score, flagged=token.flagged)
    text.end()
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_terminal_gets_every_token_in_the_colour_of_its_score_and_the_mark_of_the_alarm():
    said = drawn(Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80, no_color=False))
    for number, word in enumerate(("It", " was")):
        colour = score_style(0.2 * number).bgcolor
        assert colour is not None and colour.triplet is not None
        red, green, blue = colour.triplet
        assert f"48;2;{red};{green};{blue}m{word}" in said
    # Of the model's own escapes none is left.
    assert "\x1b[31m" not in said and "50␛[31m" in said and said.count("[alarm]") == 1
    assert said.index(" was") < said.index("[alarm]") < said.index(" 50")


def test_a_terminal_of_sixteen_colours_gets_four_that_grow():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80, no_color=False)
    text = LiveText(console)
    for score in (0.1, 0.3, 0.6, 0.9, float("nan")):
        text.add("x", score, flagged=False)
    assert console.file.getvalue() == "x\x1b[30;103mx\x1b[0m\x1b[30;43mx\x1b[0m\x1b[97;41mx\x1b[0mx"  # pyright: ignore


@pytest.mark.parametrize("case", [{"force_terminal": False}, {"force_terminal": True, "no_color": True}])
def test_a_pipe_and_no_color_get_plain_text(case):
    said = drawn(Console(file=io.StringIO(), width=80, **case))
    assert said == "A promptIt was[alarm] 50␛[31m red↵\n now\n"


def test_colours_go_from_pale_to_red_and_letters_stay_readable():
    shades = [score_style(score / 20).bgcolor.triplet for score in range(21)]  # pyright: ignore[reportOptionalMemberAccess]
    assert tuple(shades[0]) == PALE and tuple(shades[-1]) == RED  # pyright: ignore[reportArgumentType]
    greens = [shade.green for shade in shades]  # pyright: ignore[reportOptionalMemberAccess]
    assert greens == sorted(greens, reverse=True) and len(set(greens)) == 21
    assert score_style(1.0).color.triplet.hex == LIGHT  # pyright: ignore[reportOptionalMemberAccess]
    assert score_style(float("nan")) == score_style(-3.0) == score_style(0.0) and score_style(7.0) == score_style(1.0)
    for score in range(101):
        style = score_style(score / 100)
        assert contrast(style.color.triplet, style.bgcolor.triplet) >= 4.5  # pyright: ignore[reportOptionalMemberAccess]


def contrast(one, two) -> float:
    def luminance(colour) -> float:
        parts = [value / 255 for value in colour]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_nothing_that_a_terminal_acts_on_is_left():
    everything = "".join(map(chr, [*range(0x300), 0x200B, 0x202E, 0x2028, 0x2066, 0xD800, 0xFEFF]))
    shown = harmless(everything)
    assert not [letter for letter in shown if letter != "\n" and (ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0)]
    assert not set("\u202e\u2066\u2028\ud800") & set(shown) and "‹U+202E›" in shown
    assert harmless("naïve 中文 🙂 a\u200db") == "naïve 中文 🙂 a\u200db"


def test_a_character_that_is_cut_comes_with_its_last_token():
    parts = "🙂".encode()
    joined = Joined(lambda ids: bytes(ids).decode(errors="replace"))
    assert [joined.add(byte) for byte in (0x61, *parts, 0x62)] == ["a", "", "", "", "🙂", "b"]
    broken = Joined(lambda ids: bytes(ids).decode(errors="replace"))
    assert [broken.add(byte) for byte in (0x80, 0x80, 0x80, 0x80)][-1] == "\ufffd" * 4
    assert broken.add(0xF0) == "" and broken.rest() == "\ufffd" and broken.rest() == "\ufffd"


def test_the_account_says_when_the_alarm_came_and_what_was_done():
    account = Account()
    for token in tokens():
        account.add(token)
    assert (
        account.sentence("flag", 50)
        == "Alarm after 2 own tokens, with 48 of 50 to come: highest score 0.800, p-value 0.2."
    )
    stopped = Account()
    for token in tokens(3, stopped=True):
        stopped.add(token)
    assert stopped.ids == [0, 1, 2] and "with 47 of 50 to come, and stopped there" in stopped.sentence("stop", 50)
    assert Account().sentence("flag", 50).startswith("No alarm in 0 tokens")


def test_lines_of_json_have_every_token_and_a_summary(capsys):
    write_lines(tokens(3, stopped=True), decode, {"action": "stop", "threshold": float("inf")})
    out = capsys.readouterr().out
    assert "\x1b" not in out
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["k"] for line in lines[:-1]] == [0, 1, 2, 3] and lines[2]["text"] == WORDS[2]
    assert lines[0] == {"id": 0, "text": "It", "score": 0.0, "p_value": 1.0, "flagged": False, "k": 0}
    assert lines[3]["id"] is None and lines[3]["flagged"]
    summary = lines[-1]
    assert summary["summary"] is True and summary["text"] == "".join(WORDS[:3]) and summary["tokens"] == 3
    assert summary["flagged_at"] == 3 and summary["highest_score"] == 0.9 and summary["threshold"] is None


def test_drawing_ends_with_a_sentence(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    monkeypatch.setattr(spoken_output, "console", console)
    draw(iter(tokens()), "A prompt", decode, "flag", 5)
    said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert said.splitlines()[-1].startswith("Alarm after 2 own tokens, with 3 of 5 to come")


def test_a_reader_that_leaves_ends_the_lines_quietly():
    code = """if True:
        import itertools
        from tests.cli.test_live_text import decode
        from mechmem.detect.monitor.stream import SpokenToken
        from mechmem.cli.spoken_output import write_lines
        write_lines((SpokenToken(0, "It", 0.5, 0.5, False, k) for k in itertools.count()), decode, {})"""
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    with os.fdopen(read) as lines:
        first = json.loads(lines.readline())
    assert first["k"] == 0
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == b""
