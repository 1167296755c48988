"""JAX's compilation cache on disk, so that the next command starts sooner."""

import hashlib
import pathlib
import platform
from typing import Any

import jax

from vitjax.checkpoints.download import cache_folder
from vitjax.cli.command import make_folder


def enable_compilation_cache() -> pathlib.Path | None:
    """Turn the cache on, in the folder of this kind of machine, and return it.

    A folder that the user chose, as by `JAX_COMPILATION_CACHE_DIR`, stays; where none
    can be written, nothing is cached.
    """
    chosen: Any = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009
    if chosen is not None:
        return pathlib.Path(chosen)
    folder = cache_folder() / "compiled" / machine()
    try:
        make_folder(folder)
    except ValueError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def machine() -> str:
    """A name for processors that run the same machine code: JAX compiles for the one
    that it finds, and several kinds may share a home folder.
    """
    lines = {platform.machine(), platform.processor()}
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        kinds = ("flags", "Features", "model name")
        lines |= {x for x in cpuinfo.read_text().splitlines() if x.startswith(kinds)}
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()[:12]
