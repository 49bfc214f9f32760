"""The `mechmem` command: arguments, progress and exit codes.

Science is imported inside the commands: the libraries take seconds, and `--help` must answer at once.
"""

import os

# Two threads that wait by spinning take five times as long where another program runs beside them. It is read once,
# when torch is loaded, so it is said here; a library must not decide it for its user's process, a command may.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from mechmem.cli import (  # noqa: E402
    check,
    config,
    edit,
    evaluate,
    export,
    gradients,
    heads,
    localize,
    memorize,
    patch,
    perturb,
    report,
    run,
    scan,
    unlearn,
)
from mechmem.cli.app import app  # noqa: E402

__all__ = [
    "app",
    "check",
    "config",
    "edit",
    "evaluate",
    "export",
    "gradients",
    "heads",
    "localize",
    "memorize",
    "patch",
    "perturb",
    "report",
    "run",
    "scan",
    "unlearn",
]
