"""`python -m mechmem.cli`."""

from mechmem.cli import app

app()
