"""The one exception for bad input."""


class InputError(ValueError):
    """What the user gave cannot be used; the message says what it was, what is needed and what to do.

    The command line prints the message alone and exits with 2; any other exception is a defect and keeps its traceback.
    """
