"""Independent implementations, where they are installed: extra `test-parity`."""

import importlib
import importlib.machinery
import importlib.util
import sys
import types

import pytest

FILTERS = ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")


class Stand(types.ModuleType):
    """A module that has whatever is asked of it, and can do nothing."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {each: each for each in FILTERS})
        setattr(self, name, made)
        return made


class Finder:
    """timm and open_clip import torchvision for pictures, which no test here needs, and
    which PyPI does not build for every CPU-only PyTorch.
    """

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Stand(spec.name)

    def exec_module(self, module):
        return None


@pytest.fixture(scope="session")
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(2)
    return torch


def without_torchvision(name):
    """A library that imports it, with a stand-in where it is absent."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    stand_in = importlib.util.find_spec("torchvision") is None
    if stand_in:
        sys.meta_path.append(Finder())
    module = importlib.import_module(name)
    if stand_in:  # transformers would take it for the real one
        sys.meta_path.pop()
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    return module


@pytest.fixture(scope="session")
def timm(torch):
    return without_torchvision("timm")


@pytest.fixture(scope="session")
def open_clip(timm):
    return without_torchvision("open_clip")


@pytest.fixture(scope="session")
def transformers(torch):
    return pytest.importorskip("transformers")
