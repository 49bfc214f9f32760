"""CircuitsVis' view, for those who like it: offline, escaped, and only what it can show."""

import json
import re

import numpy as np
import pytest

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.show.patterns.attention_side import Side
from mechmem.show.patterns.circuitsvis_view import circuitsvis_picture, circuitsvis_script
from tests.browser import needs_chromium, open_page

NASTY = ["</script>", "<img/src=x onerror=window.pwned=1>", "<img/src=http://leak.test/bare>", "{{7*7}}"]
PROBE = """<script>
window.errors = [];
window.addEventListener("error", (event) => window.errors.push(String(event.message)));
setTimeout(() => {
  document.documentElement.dataset.probe = JSON.stringify({ pwned: window.pwned === 1, errors: window.errors,
    canvases: document.querySelectorAll("canvas").length, images: document.querySelectorAll("img").length });
}, 3000);
</script>"""


def test_the_library_cannot_end_its_own_script():
    assert not re.search(r"</?script|<!--", circuitsvis_script())


def test_weights_and_tokens_are_the_models(tiny_model, tiny_paragraphs):
    paragraphs = tiny_paragraphs[:2]
    picture = mm.show.attention(tiny_model, paragraphs, heads=["L0H1", "L1H0"], style="circuitsvis")
    found = [json.loads(text) for text in re.findall(r'-data">(\{.*?\})</script>', picture.html)]
    pattern = mm.capture(tiny_model, paragraphs, sites="pattern").pattern
    assert len(found) == 2 and found[0]["attentionHeadNames"] == ["L0H1", "L1H0"]
    for row, one in enumerate(found):
        truth = np.stack([pattern[row, 0, 1].values, pattern[row, 1, 0].values])
        np.testing.assert_allclose(one["attention"], truth, atol=6e-4)
        assert len(one["tokens"]) == pattern.sizes["key_pos"]


@pytest.mark.parametrize("given", [{"counts": np.arange(100)}, {"theme": "dark"}, {"names": ("a", "b")}])
def test_what_it_cannot_show_is_refused(tiny_model, tiny_paragraphs, given):
    with pytest.raises(InputError, match=f"'circuitsvis' does not use {next(iter(given))}"):
        mm.show.attention(tiny_model, tiny_paragraphs[:1], style="circuitsvis", **given)
    with pytest.raises(InputError, match="got style 'none'; need one of mechmem, circuitsvis"):
        mm.show.attention(tiny_model, tiny_paragraphs[:1], style="none")


@needs_chromium
def test_hostile_tokens_are_drawn_and_do_nothing(tmp_path):
    side = Side("<img/src=x onerror=window.pwned=1>", [(0, 0), (0, 1)], NASTY, None, None, np.stack([np.eye(4)] * 2))
    page = circuitsvis_picture([side]).save(tmp_path / "x.html").read_text(encoding="utf-8")
    seen, requests = open_page(page.replace("Content-Security-Policy", "Nothing"), tmp_path, PROBE)
    # A small matrix for each head, and the large one.
    assert seen == {"pwned": False, "errors": [], "canvases": 3, "images": 0} and requests == []
