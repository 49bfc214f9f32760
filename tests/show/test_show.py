"""What all pictures have in common."""

import inspect
from pathlib import Path

import mechmem as mm


def test_every_function_that_takes_a_model_says_what_it_does_with_hooks():
    page = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text(encoding="utf-8")
    for name in dir(mm.show):
        function = getattr(mm.show, name)
        if not inspect.isfunction(function):
            continue
        if "HookedTransformer" in str(inspect.signature(function)):
            assert function.hooks in ("run", "refuse")
            assert f"| `show.{name}` | {'runs' if function.hooks == 'run' else 'refuses'} |" in page


def test_a_picture_says_what_it_is_where_no_html_is_shown(tiny_model, tiny_paragraphs):
    picture = mm.show.attention(tiny_model, tiny_paragraphs[:1], heads="L0H0")
    assert repr(picture).startswith("Picture('Attention of L0H0')")
    bundle = picture._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"} and bundle["text/html"] == picture._repr_html_()
    # Without scripts the still picture remains.
    assert '<img alt="Attention of L0H0" src="data:image/png;base64,' in picture.html
