"""mechmem: what a language model memorized, where it sits, and what removing it does.

The public names are declared once, in `__init__.pyi`, and imported on first use: transformer_lens takes seconds to
import, and `mechmem --help` must not wait for it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
