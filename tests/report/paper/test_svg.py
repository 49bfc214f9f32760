"""SVG files of figures, with a browser and without."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import xarray as xr

from mechmem.report.paper import svg
from mechmem.report.paper.drawing import Drawing
from mechmem.report.paper.drawings.sets_drawing import draw_sets
from mechmem.show.charts import chart_svg

DATA = xr.Dataset({"count": ("group", np.array([7, 3]))}, {"group": ["0-10", "50"]})


def test_without_a_browser_a_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(chart_svg, "browser", lambda: None)
    said = svg.write_svgs(tmp_path / "figures", draw_sets(DATA))
    assert said is not None and "Chromium was not found" in said and not (tmp_path / "figures").exists()


@pytest.mark.parametrize("command", ["false", "true"])
def test_a_browser_that_draws_nothing_is_a_sentence(tmp_path, monkeypatch, command):
    monkeypatch.setattr(chart_svg, "browser", lambda: f"/bin/{command}")
    said = svg.write_svgs(tmp_path / "figures", draw_sets(DATA))
    assert said is not None and ("could not draw" in said or "the browser did not draw groups" in said)


@pytest.mark.skipif(chart_svg.browser() is None, reason="Chromium is not installed")
def test_each_figure_is_a_file_of_its_own(tmp_path):
    (bars,) = draw_sets(DATA)
    bars.figure.update_layout(title="a < b & </script>")
    said = svg.write_svgs(tmp_path / "figures", [bars, Drawing("again", bars.figure, "")])
    assert said is None and sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "again.svg",
        "groups.svg",
    ]
    root = ElementTree.parse(tmp_path / "figures" / "groups.svg").getroot()
    assert root.tag.endswith("svg") and root.attrib["width"] == "960"
    text = "".join(root.itertext())
    assert "a < b &" in text and "paragraphs (log scale)" in text
