"""Data and scripts inside an HTML page: forms that a browser reads back unchanged and that nothing can break out of."""

import base64
import json
import zlib
from typing import Any

from markupsafe import Markup

# JSON in a script element ends at the first `</script`, whatever the quotes; `<!--` changes the parser's state; the two
# line separators end a string in older JavaScript. All four letters occur in JSON only inside strings, where \\u works.
_JSON_ESCAPES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}
# The same three openings, written so that a JavaScript string, template or regular expression means the same.
_SCRIPT_ESCAPES = (("</script", r"\x3c/script"), ("<script", r"\x3cscript"), ("<!--", r"\x3c!--"))


def json_markup(value: Any) -> Markup:
    """A value as JSON, safe inside a `<script type="application/json">` element; NaN becomes null."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        # Looked for only where one is: attention patterns of long paragraphs have millions of numbers.
        text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return json_text_markup(text)


def json_text_markup(text: str) -> Markup:
    """JSON text, already serialised, made safe for a script element."""
    return Markup(text.translate(_JSON_ESCAPES))


def packed_bytes(data: bytes) -> str:
    """Bytes compressed and written as text, which `unpacked` of scripts/shared.js reads."""
    return base64.b64encode(zlib.compress(data, 9)).decode()


def script_markup(source: str) -> Markup:
    """A trusted library's JavaScript made safe for one script element: its strings may name `</script>`."""
    for opening, escape in _SCRIPT_ESCAPES:
        source = source.replace(opening, escape)
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    # A source map's address would make the browser's developer tools ask for a file that is not there.
    lines = [line for line in source.split("\n") if not line.startswith("//# sourceMappingURL")]
    return Markup("\n".join(lines))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
