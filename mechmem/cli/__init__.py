"""The `mechmem` command: arguments, progress and exit codes.

Science is imported inside the commands: the libraries take seconds, and `--help` must answer at once.
"""

from mechmem.cli import check, edits, judge, localize, perturb, scan, study
from mechmem.cli.app import app

__all__ = ["app", "check", "edits", "judge", "localize", "perturb", "scan", "study"]
