"""The `mechmem` command: arguments, progress and exit codes.

Science is imported inside the commands: the libraries take seconds, and `--help` must answer at once.
"""

from mechmem.cli import (
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
from mechmem.cli.app import app

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
