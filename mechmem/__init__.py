"""mechmem: what a language model memorized, where it sits, and what removing it does.

The public names are declared once, in `__init__.pyi`, and imported on first use: transformer_lens takes seconds to
import, and `mechmem --help` must not wait for it. Nor must completion in a notebook, which looks at every name: it does
not evaluate properties, so each name is one until it is first used.
"""

import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import lazy_loader

# Of several packages, in a notebook without ipywidgets; their progress is shown as text then.
warnings.filterwarnings("ignore", message="IProgress not found")

_import_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


# Folders that are public under their own name; of others, only what is in them is.
_PUBLIC_FOLDERS = {"show"}


class _Package(types.ModuleType):
    """The package itself, with one property for each public name that was not used yet."""


def _on_first_use(name: str, import_name: Callable[[str], Any]) -> property:
    def keep(package: types.ModuleType, value: Any) -> None:
        # Importing mechmem.scan, a folder, binds it to `scan`, which is the public function's name.
        if name in _PUBLIC_FOLDERS or value is not sys.modules.get(f"{package.__name__}.{name}"):
            package.__dict__[name] = value
            if name in vars(_Package):
                delattr(_Package, name)

    def first_use(package: types.ModuleType) -> Any:
        keep(package, import_name(name))
        return package.__dict__[name]

    return property(first_use, keep)


for _name in __all__:
    setattr(_Package, _name, _on_first_use(_name, _import_name))
sys.modules[__name__].__class__ = _Package
