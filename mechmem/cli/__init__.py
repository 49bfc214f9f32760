"""The `mechmem` command: arguments, progress and exit codes.

Science is imported inside the commands: the libraries take seconds, and `--help` must answer at once.
"""

import os
import sys

# Two threads that wait by spinning take five times as long where another program runs beside them. It is read once,
# when torch is loaded, so it is said here; a library must not decide it for its user's process, a command may.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

try:
    from mechmem.cli import (
        check,
        config,
        detect,
        edit,
        evaluate,
        export,
        gradients,
        head,
        heads,
        ladder,
        localize,
        memorize,
        paper,
        patch,
        perturb,
        report,
        run,
        scan,
        unlearn,
        watch,
    )
    from mechmem.cli.commands import app
except KeyboardInterrupt:
    # Before any command has begun; from then on, `commands` answers.
    sys.stderr.write("stopped; the same command starts again\n")
    sys.exit(130)

__all__ = [
    "app",
    "check",
    "config",
    "detect",
    "edit",
    "evaluate",
    "export",
    "gradients",
    "head",
    "heads",
    "ladder",
    "localize",
    "memorize",
    "paper",
    "patch",
    "perturb",
    "report",
    "run",
    "scan",
    "unlearn",
    "watch",
]
