"""Files of a run directory, on disk or in a bucket; failures as one paragraph."""

import errno
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

ROWS = "rows.zarr"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DAMAGE = re.compile("DATA_LOSS|(FAILED_PRECONDITION|INVALID_ARGUMENT): Error reading")
"""How tensorstore begins to say that what it read cannot be decoded."""


class StorageError(OSError):
    """A run directory that cannot be read or written; one paragraph that says why."""


class DamageError(StorageError):
    """A file of a run directory that is gone, or is there and cannot be decoded."""


def run_path(path: str | os.PathLike) -> str:
    """A run directory as the user gave it, `~` expanded.

    Raises:
        ValueError: it is empty, as an unset variable of a shell is.
    """
    path = os.path.expanduser(os.fspath(path))
    if not path:
        raise ValueError("The run directory's path is empty; give a folder.")
    return path


def join(path: str, *names: str) -> str:
    """A path below a folder or a URL."""
    return "/".join([path.rstrip("/") or path, *names])


def kvstore(path: str) -> dict[str, str]:
    """Where tensorstore finds a folder or URL."""
    match = re.fullmatch(r"(gs|s3)://([^/]+)/?(.*)", path)
    if match:
        driver, bucket, key = match.groups()
        driver = "gcs" if driver == "gs" else driver
        return {"driver": driver, "bucket": bucket, "path": f"{key.rstrip('/')}/"}
    return {"driver": "file", "path": f"{os.path.abspath(path)}/"}


def open_store(path: str, name: str, metadata: dict | None = None) -> Any:
    """Open an array of a run; with metadata, create it where it is missing."""
    import tensorstore

    spec: dict[str, Any] = {
        "driver": "zarr3",
        "kvstore": kvstore(join(path, ROWS, name)),
        # Else a chunk of nothing but fill values has no file, as if it were lost.
        "store_data_equal_to_fill_value": True,
    }
    if metadata is None:
        opened = tensorstore.open(spec, open=True)
    else:
        spec["metadata"] = metadata
        opened = tensorstore.open(spec, open=True, create=True)
    return wait(opened, doing=f"open the array {name} of", path=path)


def chunks_there(store: Any, path: str) -> set[int]:
    """Numbers, along the first axis, of an array's chunks that have a file."""
    keys = wait(store.kvstore.list(), doing="list the files of", path=path)
    parts = (key.decode().split("/") for key in keys)
    return {int(part[1]) for part in parts if part[0] == "c"}


def chunk_length(store: Any) -> int:
    """Places of a chunk along the first axis."""
    return store.chunk_layout.read_chunk.shape[0]


def gone_chunks(store: Any, path: str, written: np.ndarray) -> set[int]:
    """Chunks that have no file, though something was written there.

    Args:
        store: an open array.
        path: the run directory.
        written: of its first axis, a flag per place.
    """
    if 0 in store.shape:
        return set()
    held = np.flatnonzero(written[: store.shape[0]]) // chunk_length(store)
    return set(held.tolist()) - chunks_there(store, path)


def ranges(chunks: Iterable[int], *, length: int, stop: int) -> str:
    """Places of chunks in words: "0 to 31, 64 to 95"; of very many the first few."""
    ends: list[list[int]] = []
    for chunk in sorted(chunks):
        if ends and ends[-1][1] == chunk * length:
            ends[-1][1] += length
        else:
            ends.append([chunk * length, (chunk + 1) * length])
    more = f" and {len(ends) - 3} ranges more" if len(ends) > 3 else ""
    lasts = [min(end, stop) - 1 for _, end in ends[:3]]
    said = [f"{a} to {b}" if a < b else str(a) for (a, _), b in zip(ends, lasts)]
    return ", ".join(said) + more


def write_bytes(path: str, name: str, content: bytes | None) -> None:
    """Write a file of a run directory, whole or not at all; None removes it."""
    import tensorstore

    store = wait(tensorstore.KvStore.open(kvstore(path)), doing="open", path=path)
    wait(store.write(name, content), doing=f"write {name} to", path=path)


def read_bytes(path: str, name: str) -> bytes | None:
    """A file of a run directory, or None where there is none."""
    import tensorstore

    store = wait(tensorstore.KvStore.open(kvstore(path)), doing="open", path=path)
    found = wait(store.read(name), doing=f"read {name} of", path=path)
    return found.value if found.state == "value" else None


def list_files(path: str, prefix: str) -> list[str]:
    """Names of a run directory's files that begin in some way, in order."""
    import tensorstore

    store = wait(tensorstore.KvStore.open(kvstore(path)), doing="open", path=path)
    chosen = tensorstore.KvStore.KeyRange(prefix, f"{prefix}\x7f")
    keys = wait(store.list(chosen), doing="list the files of", path=path)
    return sorted(key.decode() for key in keys)


def exists(path: str, name: str) -> bool:
    """Whether a run directory has a file of that name."""
    return read_bytes(path, name) is not None


def wait(future: Any, *, doing: str, path: str = "") -> Any:
    """A tensorstore future's value; its failures as one paragraph.

    Raises:
        StorageError: tensorstore failed.
    """
    try:
        return future.result()
    except Exception as error:
        code = re.search(r"\[os_error_code='(\d+)'\]", str(error))
        raise storage_error(error, code and int(code[1]), doing, path) from error


def storage_error(
    error: Exception, code: int | None, doing: str, path: str
) -> StorageError:
    """What failed and what to do about it."""
    reason = os.strerror(code) if code else str(error).partition(" [")[0]
    place, kind = path or "the run directory", StorageError
    if not code and DAMAGE.match(str(error)):
        kind = DamageError
        advice = (
            "This file is damaged: remove it, and the `vitjax run` command that wrote "
            "the folder computes its rows again."
        )
    elif code in NO_ROOM:
        advice = "Make room there, or raise the quota, and give the same command again."
    else:
        advice = "Check that the folder exists and that you may write there."
    failure = kind(f"Cannot {doing} {place}: {reason}. {advice}")
    failure.errno = code
    return failure
