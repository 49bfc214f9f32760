"""Bars: when there is one, how many, and that it ends with the work."""

import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

import mechmem as mm
from mechmem.data import progress
from mechmem.data.bounds import checked
from mechmem.data.progress import ProgressLike, as_callback, batches, part_of, reporting


@pytest.fixture(autouse=True)
def nothing_chosen():
    yield
    mm.set_progress(None)


@pytest.fixture
def bars(monkeypatch):
    """The bars that are made, each with what was reported, in place of tqdm's."""
    made: list[Any] = []

    class Bar:
        def __init__(self, total, desc, leave):
            self.total, self.desc, self.leave, self.n, self.closed = total, desc, leave, 0, False
            # What a bar of ipywidgets has.
            self.container = object()
            self.drawn: list[int] = []
            made.append(self)

        def refresh(self):
            self.drawn.append(self.n)

        def reset(self, total):
            self.total = total

        def set_description(self, desc, refresh):
            assert not refresh
            self.desc = desc

        def close(self):
            self.closed = True

    monkeypatch.setattr(progress, "_tqdm", lambda: Bar)
    return made


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `work` moves."""
    now = SimpleNamespace(time=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(time=lambda: now.time))
    return now


@pytest.fixture
def kernel(monkeypatch):
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def work(clock, seconds, steps=4):
    @checked
    def long_work(*, progress: ProgressLike = None) -> None:
        for _ in batches(steps, 1, progress):
            clock.time += seconds / steps

    return long_work


def test_batches_cover_every_row_once_and_report_after_each():
    calls: list[tuple[int, int]] = []
    slices = list(batches(7, 3, lambda done, total: calls.append((done, total))))
    assert [list(range(7))[part] for part in slices] == [[0, 1, 2], [3, 4, 5], [6]]
    assert calls == [(3, 7), (6, 7), (7, 7)]
    assert list(batches(0, 3)) == []


def test_parts_report_to_the_whole():
    calls: list[tuple[int, int]] = []
    for number in range(2):
        part_of(lambda done, total: calls.append((done, total)), number, 2)(3, 4)
    assert calls == [(3, 8), (7, 8)]
    part_of(None, 0, 2)(1, 4)


@pytest.mark.parametrize("news", [[(1, 4), (4, 4)], [("reading", 1, 4), ("reading", 4, 4), ("scoring", 2, 2)]])
def test_true_draws_one_bar_of_tqdm(capsys, news):
    with reporting(True, "work") as report:
        assert report is not None
        for one in news:
            report(*one)
    said = capsys.readouterr().err
    assert "4/4" in said and all(str(one[0] if len(one) == 3 else "work") in said for one in news)
    assert as_callback(None, "work") is None and as_callback(False, "work") is None


def test_a_script_has_no_bar_unless_it_is_asked_for(bars, clock):
    work(clock, 60)()
    assert bars == []
    mm.set_progress(True)
    work(clock, 1)()
    assert [(bar.desc, bar.n, bar.total, bar.closed, bar.leave) for bar in bars] == [("long_work", 4, 4, True, True)]
    work(clock, 1)(progress=False)
    assert len(bars) == 1
    mm.set_progress(False)
    work(clock, 1)()
    assert len(bars) == 1


@pytest.mark.usefixtures("kernel")
def test_a_notebook_has_a_bar_after_ten_seconds(bars, clock):
    work(clock, 9)()
    work(clock, 8)()
    assert bars == []
    work(clock, 40, steps=8)()
    (bar,) = bars
    assert bar.drawn == [2, 3, 4, 5, 6, 7, 8] and bar.closed and not bar.leave and bar.start_t == 1017.0
    mm.set_progress(False)
    work(clock, 60)()
    assert len(bars) == 1


@pytest.mark.usefixtures("kernel")
def test_a_notebook_without_widgets_keeps_few_lines_of_text(bars, clock, monkeypatch):
    plain = progress._tqdm()

    def text(**given):
        bar = plain(**given)
        del bar.container
        return bar

    monkeypatch.setattr(progress, "_tqdm", lambda: text)
    work(clock, 40, steps=20)()
    (bar,) = bars
    assert bar.drawn == [5, 8, 11, 14, 17, 20]


@pytest.mark.usefixtures("kernel")
def test_a_callback_is_called_as_before_and_has_no_bar(bars, clock):
    calls: list[tuple[int, int]] = []
    work(clock, 60)(progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)] and bars == []


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_ends_the_work_closes_its_bar(bars, clock, error):
    @checked
    def fails(*, progress: ProgressLike = None) -> None:
        for part in batches(4, 1, progress):
            clock.time += 20
            if part.start == 2:
                raise error

    with pytest.raises(error):
        fails()
    assert [bar.closed for bar in bars] == [True] and bars[0].n == 2
    # The next call has its own again.
    work(clock, 40)()
    assert len(bars) == 2


@pytest.mark.parametrize("asked", [None, True])
@pytest.mark.usefixtures("kernel")
def test_work_within_work_has_one_bar(bars, clock, asked):
    @checked
    def outer(*, progress: ProgressLike = None) -> None:
        for _ in batches(2, 1, progress):
            work(clock, 30)(progress=asked)

    outer()
    assert [bar.desc for bar in bars] == ["outer"]
    outer(progress=False)
    assert len(bars) == 1


def test_a_bar_is_not_drawn_for_every_report(bars, clock):
    work(clock, 1, steps=1000)(progress=True)
    (bar,) = bars
    assert len(bar.drawn) <= 12 and bar.drawn[-1] == 1000


def test_each_part_of_the_work_begins_the_bar_again(bars):
    with reporting(True, "scan") as report:
        assert report is not None
        for news in (("reading", 1, 4), ("reading", 4, 4), ("scoring", 1, 2)):
            report(*news)  # pyright: ignore[reportCallIssue]
    assert [(bar.desc, bar.n, bar.total) for bar in bars] == [("scoring", 1, 2)]


def test_a_model_s_functions_report_alike(bars, tiny_model, tiny_paragraphs):
    mm.set_progress(True)
    mm.score(tiny_model, tiny_paragraphs)
    mm.head_report(tiny_model, tiny_paragraphs[:3], tiny_paragraphs[3:6], head="L0H0", counts=[1.0] * 61)
    assert [bar.desc for bar in bars] == ["score", "head_report"] and all(bar.closed for bar in bars)
    assert bars[1].n == bars[1].total == 6


@pytest.mark.usefixtures("kernel")
def test_without_ipywidgets_the_bar_is_text_and_nothing_warns(monkeypatch, capsys):
    # tqdm looks at the kernel's application when it is first imported.
    shell = SimpleNamespace(kernel=object(), config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    for name in [name for name in sys.modules if name.startswith(("tqdm.auto", "tqdm.notebook", "ipywidgets"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with reporting(True, "work") as report:
            assert report is not None
            report(2, 4)
    assert "2/4" in capsys.readouterr().err
