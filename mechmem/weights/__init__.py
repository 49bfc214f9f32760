"""Which weights may move, and what moved."""
