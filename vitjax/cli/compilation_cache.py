"""Compiled programs are kept on disk, so that the next command starts sooner."""

import hashlib
import os
import pathlib
import platform
from typing import Any

import jax

from vitjax.checkpoints.download import cache_folder


def keep_compiled() -> pathlib.Path | None:
    """Turn JAX's own compilation cache on, in the folder of this kind of machine.

    Who has chosen a folder, as by `JAX_COMPILATION_CACHE_DIR`, keeps it; where none can
    be written, nothing is kept.

    Returns:
        The folder, or None.
    """
    chosen: Any = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009
    if chosen is not None:
        return pathlib.Path(chosen)
    folder = cache_folder() / "compiled" / machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def machine() -> str:
    """A name for processors that run the same machine code.

    JAX compiles for the processor that it finds; a home folder may be shared by
    several kinds of machines.
    """
    features = platform.machine() + platform.processor()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = ("flags", "Features", "model name")
    features += "".join(sorted({line for line in lines if line.startswith(kinds)}))
    return hashlib.sha256(features.encode()).hexdigest()[:12]
