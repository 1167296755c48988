"""A tiny model as a folder for --model, images of its classes, and commands."""

import json
from typing import NamedTuple

import pytest
from PIL import Image

import vitjax
from vitjax.checkpoints import loading
from vitjax.cli import main
from vitjax.data.textured_digits import CLASSES

TINY = vitjax.Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=32)


@pytest.fixture(scope="session")
def tiny():
    return vitjax.init(TINY, classes=CLASSES)


@pytest.fixture(scope="session")
def converted(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    loading.save(tiny, folder)
    return str(folder)


@pytest.fixture
def images(tmp_path):
    """A folder with one image of every class."""
    for number, name in enumerate(CLASSES):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64), (20 * number, 0, 0)).save(folder / "a.png")
    return tmp_path / "images"


class Output(NamedTuple):
    """What a command leaves: its exit status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        assert self.status == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def call(capsys):
    """(words) -> the output of a command."""

    def call(*words):
        capsys.readouterr()
        try:
            status = main.main(list(map(str, words)))
        except SystemExit as end:
            status = end.code
        return Output(status, *capsys.readouterr())

    return call


@pytest.fixture
def run(call, converted):
    """(out, flags, data) -> the output of a run of twelve images."""

    def run(out, *flags, data="textured_digits", model=converted):
        words = ["run", "identifiability", "--model", model, "--data", data]
        sizes = ["--limit", "12", "--batch-size", "4"]
        return call(*words, "--out", out, *sizes, *flags)

    return run
