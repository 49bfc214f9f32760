"""The bundled model, its paragraphs, and scripts loaded as when they are run."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="session")
def model(bundled_model):
    return bundled_model


@pytest.fixture(scope="session")
def paragraphs(bundled):
    return bundled


@pytest.fixture
def script(monkeypatch):
    """Load a script by its name; it finds its neighbours as when it is run."""
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        path = EXPERIMENTS / f"{name}.py"
        monkeypatch.syspath_prepend(path.parent)
        spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(EXPERIMENTS)):
            del sys.modules[name]
