"""Published weights: the cache of downloads, and the file of a model in it."""

import hashlib
import importlib.util
import os
import pathlib
import sys
import urllib.parse
from typing import NamedTuple

from vitjax.checkpoints import files
from vitjax.checkpoints.registry import Variant


def cache_folder() -> pathlib.Path:
    """The folder of downloads and compiled programs."""
    import pooch

    return pathlib.Path(os.environ.get("VITJAX_CACHE") or pooch.os_cache("vitjax"))


class Published(NamedTuple):
    """A file to download, its path in the cache, and the first digits of its sha256."""

    url: str
    cached: pathlib.Path
    sha256: str = ""


def published(row: Variant) -> list[Published]:
    """A row's file, and its safetensors, which need no PyTorch: those readable here."""
    if not row.url:
        return []
    folder = cache_folder()
    name = row.url.rsplit("/", 1)[-1]
    on_hub = f"https://huggingface.co/{row.tag}/resolve/main/"
    if row.url.startswith(on_hub):  # where many files have one name
        name = row.tag.split("/")[-1] + pathlib.PurePosixPath(name).suffix
    both = [Published(row.url, folder / name, row.sha256)]
    if row.tag and row.url != on_hub + row.file:
        cached = folder / f"{row.tag.split('/')[-1]}.safetensors"
        both.append(Published(on_hub + row.file, cached))
    torch = importlib.util.find_spec("torch") is not None
    readable = [f for f in both if torch or f.cached.suffix not in files.TORCH_SUFFIXES]
    return readable or both


def cached(row: Variant) -> pathlib.Path | None:
    """The file of a row in the cache, or None."""
    return next((f.cached for f in published(row) if f.cached.exists()), None)


def fetch(url: str) -> pathlib.Path:
    """A file of the user's own address, in the cache; fetched once."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(
            f"checkpoint={url!r}: addresses that begin with {parts.scheme}:// are not "
            "read, only http://, https://, gs:// and s3://. Download the file, and "
            "give its path."
        )
    name = pathlib.PurePosixPath(urllib.parse.unquote(parts.path)).name or "checkpoint"
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    path = cache_folder() / "fetched" / digest / name
    return path if path.exists() else retrieve(url, path, url)


def retrieve(url: str, path: pathlib.Path, name: str) -> pathlib.Path:
    """Download to a path; failures say where the file can be put by hand."""
    import pooch

    try:
        bar = sys.stderr.isatty()
        pooch.retrieve(url, None, path.name, path.parent, progressbar=bar)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name} could not be downloaded from {url} "
            f"({type(error).__name__}). On a machine with network, download it and put "
            f"it at {path}, or pass checkpoint= with its path (on the command line "
            "--checkpoint)."
        ) from error
    return path


def download(row: Variant) -> pathlib.Path:
    """Fetch a row's file into the cache, once; one with a wrong digest is not kept."""
    if path := cached(row):
        return path
    url, path, expected = published(row)[0]
    retrieve(url, path, row.name)
    digest = files.sha256(path)
    if not digest.startswith(expected):
        path.unlink()
        raise files.CheckpointError(
            f"The file from {url} has sha256 {digest}, not {expected}...; it "
            "was removed. Try again, or pass checkpoint= with a file that you trust."
        )
    return path


def weights(row: Variant) -> pathlib.Path:
    """A row's own weights on this machine; downloaded where they are not there."""
    if row.obtain:
        raise FileNotFoundError(f"{row.name} has no address to load from. {row.obtain}")
    if not row.packaged:
        return download(row)
    package = pathlib.Path(__file__).parents[1]
    for root in (package, package.parent):  # in a wheel, in a clone
        folder = root / "checkpoints" / row.packaged
        if (folder / files.CONFIG).exists():
            return folder
    raise FileNotFoundError(
        f"The packaged checkpoint {row.packaged} is missing from this installation of "
        "vitjax; install it again, or pass checkpoint=."
    )
