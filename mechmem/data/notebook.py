"""Whether this process is the kernel of a notebook."""

from __future__ import annotations

import sys
from typing import Any


def notebook_shell() -> Any:
    """IPython's shell in a notebook's kernel; None in scripts, in a terminal and where IPython is missing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if shell is not None and hasattr(shell, "kernel") else None
