"""The bundled model, its paragraphs, and scripts loaded as when they are run."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mechmem as mm

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="session")
def model():
    return mm.load_model("bundled")


@pytest.fixture(scope="session")
def paragraphs():
    return mm.bundled_paragraphs()


@pytest.fixture
def script(monkeypatch):
    """Load a script by its name; it finds its neighbours as when it is run."""
    monkeypatch.syspath_prepend(EXPERIMENTS)
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"experiment_{name}", EXPERIMENTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(EXPERIMENTS)):
            del sys.modules[name]
