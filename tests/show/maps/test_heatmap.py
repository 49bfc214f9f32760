"""Heatmaps: numbers survive the page, colours mean what they say, and the still picture says the same."""

import numpy as np
import pytest

from mechmem.show.colour_scale import BLUE, ORANGE, PAPER
from mechmem.show.maps.heatmap import Also, Axis, Heatmap, page_heatmap
from mechmem.show.maps.heatmap_axes import component_axis, sender_axis, token_axis
from mechmem.show.maps.heatmap_colours import cell_pixels, legend, shades
from mechmem.show.maps.heatmap_page import Chooser, Words, heatmap_picture
from mechmem.show.packed_numbers import four_digits, packed_numbers, three_digits, unpacked_numbers
from tests.show.maps.heatmap_pages import number_told, numbers_of, shown_maps, told_in_svg

ROWS, COLUMNS = Axis("layer", ["L0", "L1"], ["L0", "L1"]), Axis("head", ["H0", "H1", "H2"], ["H0", "H1", "H2"])


def heatmap(values, **options):
    kind = options.pop("kind", "diverging")
    return Heatmap("a map", np.array(values, dtype=float), ROWS, COLUMNS, "nats", kind, joint="", **options)


def test_packing_keeps_four_digits_of_every_number():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(500) * 10.0 ** rng.integers(-20, 20, 500)
    back = unpacked_numbers(packed_numbers(values))
    assert np.abs(back / values - 1).max() < 1.3e-4
    np.testing.assert_array_equal(back, four_digits(values))
    special = unpacked_numbers(packed_numbers([0.0, np.nan, np.inf, -np.inf, -1.0]))
    np.testing.assert_array_equal(special, [0, np.nan, np.nan, np.nan, -1])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.012345, "+0.0123"), (-4.5678, "−4.57"), (0.0, "0"), (1234.4, "+1,234"), (999.7, "+1,000"),
        (-7.891e-5, "−7.89e-5"),
        (0.00099999, "+0.001"), (2.5e9, "+2.50e9"), (float("nan"), "none"), (0.1, "+0.1"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert three_digits(value, signed=True) == text


def test_blue_is_the_end_that_was_said_and_zero_is_paper():
    values = [[2, -2, 0], [1, -1, np.nan]]
    higher, lower = shades(heatmap(values)), shades(heatmap(values, blue="lower"))
    np.testing.assert_allclose(higher, [[1, -1, 0], [0.5, -0.5, np.nan]])
    np.testing.assert_allclose(lower, -higher)
    pixels = cell_pixels(heatmap(values, blue="lower"))
    assert (pixels[0, 0] == ORANGE).all() and (pixels[0, 1] == BLUE).all() and (pixels[0, 2] == PAPER).all()
    assert legend(heatmap(values, blue="lower")) == [(0.0, -2.0), (0.5, 0.0), (1.0, 2.0)]


def test_a_logarithm_shows_orders_and_a_root_small_shares():
    logs = shades(heatmap([[1e-4, 1e-2, 1], [0, np.nan, 1]], kind="log"))
    assert logs[0, 1] == pytest.approx((logs[0, 0] + logs[0, 2]) / 2, abs=1e-3)
    assert logs[0, 0] > 0 and logs[1, 0] == 0 and np.isnan(logs[1, 1])
    np.testing.assert_allclose(shades(heatmap([[0, 1, 4], [0, 0, 0]], kind="root"))[0], [0, 0.5, 1])
    np.testing.assert_allclose(shades(heatmap([[1, 2, 3], [1, 1, 1]], kind="plain"))[0], [0, 0.5, 1])
    # Reversed ends: the least value is the strongest.
    np.testing.assert_allclose(shades(heatmap([[0, 5, 10], [0, 0, 0]], kind="plain", span=(10.0, 0.0)))[0], [1, 0.5, 0])


@pytest.mark.parametrize("kind", ["diverging", "log", "root", "plain"])
@pytest.mark.parametrize("value", [0.0, 3.0, np.nan])
def test_maps_of_one_value_have_finite_colours(kind, value):
    found = heatmap(np.full((2, 3), value), kind=kind)
    assert np.isfinite(found.ends()).all()
    assert np.isfinite(shades(found)).all() or np.isnan(value)
    assert cell_pixels(found).shape == (2, 3, 3)


def test_the_strongest_cell_has_a_name():
    found = heatmap([[1, -3, 0], [2, np.nan, 1]])
    assert found.strongest() == (0, 1) and found.cell(0, 1) == "L0H1"
    assert heatmap(np.zeros((2, 3))).strongest() is None


def test_maps_share_their_axes():
    axes = []
    first, second = (page_heatmap(heatmap(np.full((2, 3), value)), axes) for value in (1, 2))
    assert len(axes) == 2 and (first["rows"], first["columns"]) == (second["rows"], second["columns"]) == (0, 1)


def test_equal_tokens_are_different_places_and_changed_ones_are_marked():
    axis = token_axis(range(6), [" a", " b", " a", " c", " d", " e"], [" a", " x", " a", " c", " y", " z"], begins=3)
    assert axis.labels == [" a", " b", " a", " c", " d", " e"] and len(set(axis.names)) == 6
    assert axis.marks == {1: "changed", 4: "diverges"} and axis.begins == 3
    assert axis.names[1] == "position 1 “ b”, in the corrupt text “ x”"
    # Some positions of a text.
    part = token_axis([3, 4], [" a", " b", " a", " c", " d", " e"], [" a", " x", " a", " c", " y", " z"], begins=3)
    assert part.labels == [" c", " d"] and part.marks == {1: "diverges"} and part.begins == 0


def test_components_and_senders_stand_in_groups():
    axis = component_axis(["Q0", "Q1", "O0", "O1", "mlp_in", "mlp_out"])
    assert axis.groups == [("Q", 0), ("O", 2), ("MLP", 4)] and axis.labels == ["0", "1", "0", "1", "in", "out"]
    senders = sender_axis(["all", "embed", "L0H0", "L0MLP", "L1H0"])
    assert senders.groups == [("L0", 2), ("L1", 4)] and senders.labels == ["all", "embed", "H0", "MLP", "H0"]


def picture_of(*maps):
    return heatmap_picture(
        Words("Some maps", "A caption."), [Chooser("show", ["all"])], lambda _: list(maps), theme="auto"
    )


def test_the_svg_says_the_pages_numbers(tmp_path):
    values = np.random.default_rng(0).standard_normal((2, 3)) * [[1e-5], [1e3]]
    values[0, 1] = np.nan
    low, high = values - 0.5, values + 0.5
    also = [Also("weights", np.arange(6.0).reshape(2, 3))]
    words = [["a", "<b>", "&"], ["\0", "d", "e"]]
    picture = picture_of(
        heatmap(values, low=low, high=high, also=also, words=words, framed=[(1, 2)], framed_as="first")
    )
    page = numbers_of(picture, shown_maps(picture)[0])
    np.testing.assert_allclose(page, values, rtol=1.3e-4)
    told = told_in_svg(picture.save(tmp_path / "maps.svg"))
    assert len(told) == 6 and told[0].startswith("L0H0: ") and "weights 5" in told[5] and "“<b>”" in told[1]
    np.testing.assert_allclose([number_told(text) for text in told], page.ravel(), rtol=6e-3)
    assert f"[{three_digits(low[1, 2], signed=True)}, {three_digits(high[1, 2], signed=True)}]" in told[5]


def test_a_picture_without_scripts_is_small_and_has_words():
    picture = picture_of(heatmap([[1, -3, 0], [2, 5, 1]]))
    assert 'alt="Some maps. a map: strongest at L1H1, +5 nats."' in picture.html
    assert "data:image/svg+xml;base64," in picture.html
