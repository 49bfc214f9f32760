"""What decides an option's value, as text that is the same in another process; functions by their code."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np


def identity(value: Any) -> str:
    """What a function or a rule does, as a text that is the same in another process: code, defaults and closure."""
    code = getattr(value, "__code__", None)
    if code is None:
        # The text of an object without a repr of its own is an address, which differs between processes.
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    enclosed = [identity(cell.cell_contents) for cell in value.__closure__ or ()]
    constants = [constant for constant in code.co_consts if not hasattr(constant, "co_code")]
    body = hashlib.sha256(code.co_code + repr((constants, code.co_names)).encode()).hexdigest()
    return f"{value.__module__}.{value.__qualname__} {body} {enclosed} {value.__defaults__}"


def described(value: Any) -> Any:
    """An option as JSON has it: plain values as they are, arrays by shape and hash, anything else by `identity`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, slice):
        return repr(value)
    if isinstance(value, list | tuple):
        return [described(each) for each in value]
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        return f"{array.dtype} {list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
    return identity(value)
