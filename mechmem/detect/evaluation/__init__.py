"""How well a detector does, beside everything that is free."""
