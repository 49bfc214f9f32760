import time

from mechmem.cli import display
from mechmem.cli.display import Lines, live_progress, watch_study
from mechmem.study.stage_progress import Parts, StageNews


def test_a_log_gets_a_line_with_the_time_left_now_and_then(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with live_progress() as progress:
        for done in range(0, 1001, 10):
            progress("scoring paragraphs", done, 1000)
            now[0] += 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "scoring paragraphs ..." and len(said) == 1 + 100 // 26
    assert said[1] == "scoring paragraphs: 260 of 1,000, 0:01:14 left"


def test_work_that_reports_nothing_is_not_silent_in_a_log(capsys):
    lines = Lines(seconds=0.1)
    lines.say("attacking", now=True)
    time.sleep(0.5)
    lines.close()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "attacking" and 2 <= len(said) <= 6
    assert all(line.startswith("attacking (after 0:00:0") for line in said[1:])


def test_a_log_of_a_study_names_stages_and_findings(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with watch_study() as watch:
        watch(StageNews(3, 8, "heads", "ablating heads", 0.0, 0.0))
        now[0] = 40.0
        watch(StageNews(3, 8, "heads", "ablating heads", 0.5, 0.25))
        watch(StageNews(3, 8, "heads", "ablating heads", 1.0, 0.5, "L0H7 costs 15.8 tokens"))
    assert capsys.readouterr().out.splitlines() == [
        "stage 3 of 8, ablating heads: 0 % of the stage, time left unknown",
        "stage 3 of 8, ablating heads: 50 % of the stage, about 0:02:00 left",
        "stage 3 of 8, heads: L0H7 costs 15.8 tokens",
    ]


def test_a_terminal_gets_a_bar_and_findings(monkeypatch, capsys):
    from rich.console import Console

    monkeypatch.setattr(display, "console", Console(force_terminal=True, width=140))
    with watch_study() as watch:
        watch(StageNews(1, 8, "scan", "scoring paragraphs", 0.5, 0.25))
        watch(StageNews(1, 8, "scan", "scoring paragraphs", 1.0, 0.5, "3 of 9 paragraphs reproduced exactly"))
    said = capsys.readouterr().out
    assert "stage 1 of 8, scan: 3 of 9 paragraphs" in said and "stage 1 of 8, scoring paragraphs" in said


def test_parts_of_a_stage_share_one_total_by_their_work():
    calls: list[tuple[str, int, int]] = []
    parts = Parts(lambda *call: calls.append(call), {"first": 3, "second": 1})
    first = parts["first"]
    first(1, 3)
    first(3, 3)
    parts["second"](1, 2)
    parts["second"](2, 2)
    assert [total for *_, total in calls] == [1000] * len(calls)
    assert [done for _, done, _ in calls] == [0, 250, 750, 750, 875, 750, 1000]
