"""Pictures for notebooks and for the report: each function returns an object that a notebook displays."""

import lazy_loader

# The report imports colours from here and must not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
