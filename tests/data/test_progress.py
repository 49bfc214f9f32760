import pytest

from mechmem.data.progress import as_callback, batches, part_of


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
def test_true_draws_a_bar_for_each_kind_of_work(capsys, news):
    report = as_callback(True, "work")
    assert report is not None
    for one in news:
        report(*one)
    said = capsys.readouterr().err
    assert "4/4" in said and all(str(one[0] if len(one) == 3 else "work") in said for one in news)
    assert as_callback(None, "work") is None and as_callback(False, "work") is None
