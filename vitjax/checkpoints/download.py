"""Published weights: the cache of downloads, and the file of a model in it."""

import dataclasses
import importlib.util
import os
import pathlib
import sys

from vitjax.checkpoints import files
from vitjax.checkpoints.registry import Variant


def cache_folder() -> pathlib.Path:
    """The folder of downloads and compiled programs."""
    import pooch

    return pathlib.Path(os.environ.get("VITJAX_CACHE") or pooch.os_cache("vitjax"))


@dataclasses.dataclass(frozen=True)
class Published:
    """A file that can be downloaded.

    Args:
        url: its address.
        name: its name in the cache.
        sha256: all or the first of its digits, or "".
    """

    url: str
    name: str
    sha256: str = ""

    @property
    def cached(self) -> pathlib.Path:
        """Its path in the cache, whether or not it is there."""
        return cache_folder() / self.name

    @property
    def readable(self) -> bool:
        """Whether this installation can read it."""
        needs_torch = self.name.endswith((".pth", ".pt", ".bin"))
        return not needs_torch or importlib.util.find_spec("torch") is not None


def published(row: Variant) -> tuple[Published, ...]:
    """A row's file, and the same weights as safetensors, which need no PyTorch."""
    if not row.url:
        return ()
    original = Published(row.url, row.url.rsplit("/", 1)[-1], row.sha256)
    if not row.tag:
        return (original,)
    url = f"https://huggingface.co/{row.tag}/resolve/main/{files.ARRAYS}"
    return original, Published(url, f"{row.tag.split('/')[-1]}.safetensors")


def cached(row: Variant) -> pathlib.Path | None:
    """The file of a row in the cache, or None."""
    paths = [file.cached for file in published(row) if file.readable]
    return next((path for path in paths if path.exists()), None)


def download(row: Variant) -> pathlib.Path:
    """Fetch a row's file into the cache, once; one with a wrong digest is not kept."""
    import pooch

    if path := cached(row):
        return path
    candidates = published(row)
    file = next((each for each in candidates if each.readable), candidates[0])
    path, bar = file.cached, sys.stderr.isatty()
    try:
        pooch.retrieve(file.url, None, path.name, path.parent, progressbar=bar)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{row.name} could not be downloaded from {file.url} "
            f"({type(error).__name__}). On a machine with network, download it and put "
            f"it at {path}, or pass checkpoint= with its path (on the command line "
            "--checkpoint)."
        ) from error
    digest = files.sha256(path)
    if not digest.startswith(file.sha256):
        path.unlink()
        raise files.CheckpointError(
            f"The file from {file.url} has sha256 {digest}, not {file.sha256}...; it "
            "was removed. Try again, or pass checkpoint= with a file that you trust."
        )
    return path


def weights(row: Variant) -> pathlib.Path:
    """A row's own weights on this machine; downloaded where they are not there."""
    if row.packaged:
        return packaged(row.packaged)
    if row.obtain:
        raise FileNotFoundError(f"{row.name} has no address to load from. {row.obtain}")
    if not row.url:
        raise ValueError(
            "An architecture has no weights of its own: pass checkpoint= with a file, "
            "or call vitjax.init for random ones."
        )
    return download(row)


def packaged(folder: str) -> pathlib.Path:
    """A checkpoint that comes with vitjax: in a wheel, or in a clone."""
    package = pathlib.Path(__file__).parents[1]
    for root in (package / "checkpoints", package.parent / "checkpoints"):
        if (root / folder / files.CONFIG).exists():
            return root / folder
    raise FileNotFoundError(
        f"The packaged checkpoint {folder} is missing from this installation of "
        "vitjax; install it again, or pass checkpoint=."
    )
