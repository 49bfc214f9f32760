"""Text that stands in an SVG, whatever it says."""

from __future__ import annotations

from xml.sax.saxutils import escape

FONT = "system-ui, sans-serif"
# XML has no form for most control characters.
_ALLOWED = {9, 10, 13}


def xml_text(text: str) -> str:
    """Text as XML allows it: other control characters and lone surrogates become U+FFFD."""
    kept = (
        letter if (ord(letter) >= 32 or ord(letter) in _ALLOWED) and not 0xD800 <= ord(letter) < 0xE000 else "\ufffd"
        for letter in text
    )
    return escape("".join(kept).replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd"))
