"""Run directories as object stores: a local folder, `gs://`, `s3://`, or memory.

obstore reads and writes all of them alike, every object whole or not at all; Zarr keeps
its arrays in it. A chunk carries a checksum: one that is missing or corrupt is a
`DamageError` for who reads it, and pending for `vitjax run`.
"""

import contextlib
import errno
import os
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import google_crc32c
import obstore
import obstore.exceptions
import obstore.store
from zarr.storage import WrapperStore

ROWS = "rows.zarr"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageError(OSError):
    """A run directory cannot be read or written; the message says why."""


class DamageError(StorageError):
    """Rows are read that are not there: pending, lost or corrupt."""


class Folder:
    """A run directory: a local folder, a URL such as `gs://bucket/run`, or an obstore
    store.
    """

    def __init__(self, path: Any):
        self.path = str(path)
        if isinstance(path, (str, os.PathLike)):
            self.path = os.fspath(path)
            self.store = open_url(self.path)
        else:
            self.store = path

    def read(self, name: str) -> bytes | None:
        """An object's content, None where there is none."""
        with storage_errors(f"read {name} of", self.path):
            try:
                return bytes(obstore.get(self.store, name).bytes())
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all."""
        with storage_errors(f"write {name} to", self.path):
            obstore.put(self.store, name, content)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one; whether it was written."""
        with storage_errors(f"write {name} to", self.path):
            try:
                obstore.put(self.store, name, content, mode="create")
                return True
            except (FileExistsError, obstore.exceptions.AlreadyExistsError):
                return False

    def delete(self, names: list[str]) -> None:
        """Remove objects, missing ones too."""
        with storage_errors("remove rows from", self.path):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    obstore.delete(self.store, name)

    def list(self, prefix: str) -> list[str]:
        """Names of the objects below a folder, in order."""
        with storage_errors("list", self.path):
            pages = obstore.list(self.store, prefix)
            return sorted(meta["path"] for page in pages for meta in page)


def open_url(path: str) -> Any:
    """The obstore store of a local folder or a URL."""
    scheme, _, rest = path.partition("://")
    if scheme in ("http", "https"):  # such a server takes no folders
        raise StorageError(
            f"{path} is no folder for rows: give a local one, gs:// or s3://."
        )
    with storage_errors("open", path):
        if rest and scheme != "file":
            return obstore.store.from_url(path)
        folder = urllib.request.url2pathname(rest) if rest else os.path.abspath(path)
        return obstore.store.LocalStore(folder, mkdir=True)


class CheckedStore(WrapperStore):
    """Refuses to give a chunk that is missing or whose checksum is wrong."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        value = await self._store.get(key, prototype, byte_range)
        name, is_chunk, chunk = key.partition("/c/")
        if is_chunk and (value is None or not is_intact(value.to_bytes())):
            raise DamageError(
                f"Chunk {chunk} of {name.removeprefix(ROWS + '/')} is pending: not "
                "computed yet, lost or corrupt. `results.pending` lists such images; "
                "the `vitjax run` command that wrote the run computes them."
            )
        return value


def is_intact(content: bytes) -> bool:
    """Whether a chunk ends with the checksum (CRC32C) of what precedes."""
    if len(content) < 4:
        return False
    return google_crc32c.value(content[:-4]) == int.from_bytes(content[-4:], "little")


@contextlib.contextmanager
def storage_errors(doing: str, path: str) -> Iterator[None]:
    """Turn failures of the store into one `StorageError` that says what to do."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, StorageError):
        raise
    except (OSError, ValueError, obstore.exceptions.BaseError) as error:
        code = getattr(error, "errno", None)
        if match := re.search(r"os error (\d+)", str(error)):
            code = int(match[1])
        reason = os.strerror(code) if code else str(error).partition("\n")[0]
        advice = "Check that it exists and that you may write there."
        if code in NO_ROOM:
            advice = "Make room there, then run the same command again."
        failure = StorageError(f"Cannot {doing} {path}: {reason}. {advice}")
        failure.errno = code
        raise failure from error
