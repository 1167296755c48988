"""JAX's compilation cache on disk, so that the next command starts sooner."""

import contextlib
import hashlib
import pathlib
import platform

import jax

from vitjax.checkpoints.download import cache_folder
from vitjax.cli.command import make_folder


def enable_compilation_cache() -> None:
    """Turn the cache on, in a folder of this kind of machine.

    A folder that the user chose, as by `JAX_COMPILATION_CACHE_DIR`, stays; where none
    can be written, nothing is cached.
    """
    name = "jax_compilation_cache_dir"
    folder = cache_folder() / "compiled" / machine()
    if getattr(jax.config, name) is None:
        with contextlib.suppress(ValueError):
            make_folder(folder)
            jax.config.update(name, str(folder))


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
