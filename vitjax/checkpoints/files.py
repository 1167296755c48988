"""Checkpoint files: named arrays in npz, safetensors and PyTorch files, and back."""

import contextlib
import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".npz", ".safetensors", *TORCH_SUFFIXES)
ARRAYS, CONFIG = "model.safetensors", "config.json"
"""The two files of a folder that `vitjax.save` writes."""

Arrays = Mapping[str, Callable[[], np.ndarray]]
"""Keys, and functions that read their arrays."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit the model."""


@contextlib.contextmanager
def open_arrays(path: str | os.PathLike) -> Iterator[Arrays]:
    """A checkpoint file, local or remote.

    Truncated files, unknown formats and pickles raise CheckpointError.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"There is no checkpoint at {path}. Give the path of an existing "
            f"{', '.join(SUFFIXES[:3])} file, or of a folder that vitjax wrote."
        )
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{path} does not end in one of {SUFFIXES}, so its format is not known."
        )
    readers = {".npz": read_npz, ".safetensors": read_safetensors}
    with readers.get(path.suffix, read_torch)(path) as arrays:
        yield arrays


def broken(path, reason) -> CheckpointError:
    """The error for a file that is there but cannot be read."""
    return CheckpointError(
        f"{path} cannot be read as {path.suffix} ({reason}). It is probably truncated "
        "or not such a file: compare its size with the source's and download it again."
    )


@contextlib.contextmanager
def read_npz(path) -> Iterator[Arrays]:
    """numpy's archive, without pickles."""
    with path.open("rb") as file:
        try:
            npz = np.load(file, allow_pickle=False)
        except (ValueError, zipfile.BadZipFile, EOFError) as error:
            # Not numpy's own words: they advise to unpickle.
            raise broken(path, "it is no archive of plain arrays") from error
        if not isinstance(npz, np.lib.npyio.NpzFile):
            raise broken(path, "it holds a single array")

        def read(key):
            try:
                array = npz[key]
            except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
                raise broken(path, error) from error
            # numpy saves bfloat16 as two void bytes.
            return array.view(jnp.bfloat16) if array.dtype == np.dtype("V2") else array

        yield {key: functools.partial(read, key) for key in npz.files}


@contextlib.contextmanager
def read_safetensors(path) -> Iterator[Arrays]:
    """Hugging Face's format: a header and raw bytes."""
    import safetensors
    import safetensors.numpy

    try:
        if os.path.exists(path):
            with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
                read, keys = file.get_tensor, file.keys()
                yield {key: functools.partial(read, key) for key in keys}
        else:
            arrays = safetensors.numpy.load(path.read_bytes())
            yield {key: functools.partial(np.asarray, arrays[key]) for key in arrays}
    except safetensors.SafetensorError as error:
        raise broken(path, error) from error


@contextlib.contextmanager
def read_torch(path) -> Iterator[Arrays]:
    """A PyTorch state dict, unpickled as weights only; needs the extra `torch`."""
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"Reading {path} needs PyTorch: pip install 'vitjax[torch]', or convert "
            "the file to .safetensors where PyTorch is installed."
        ) from error
    try:
        with path.open("rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises its own, zipfile's and pickle's
        # Not torch's own words: they advise to load it unsafely.
        reason = f"{type(error).__name__}: it is damaged, or holds more than arrays"
        raise broken(path, reason) from error
    if not isinstance(state, dict):
        raise broken(path, "it holds no state dict")
    for nest in ("state_dict", "model"):
        state = state[nest] if isinstance(state.get(nest), dict) else state

    def read(tensor):
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

    yield {
        key: functools.partial(read, tensor)
        for key, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }


def write_folder(folder, arrays: dict[str, np.ndarray], config: dict) -> None:
    """Write our own folder: the arrays as safetensors, the rest as JSON."""
    import safetensors.numpy

    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    (folder / ARRAYS).write_bytes(safetensors.numpy.save(contiguous))
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The config.json of our own folder, or of a Hugging Face model's."""
    path = epath.Path(folder) / CONFIG
    if not path.exists():
        raise CheckpointError(
            f"{folder} is not a folder that `vitjax convert` wrote: it has no {CONFIG}."
        )
    return read_json(path)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON object."""
    try:
        content = json.loads(epath.Path(path).read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object.")
    return content


def read_config_json(path: str | os.PathLike) -> dict[str, Any]:
    """The config.json in the folder of a checkpoint file; empty where there is none."""
    folder = epath.Path(path).parent
    return read_config(folder) if (folder / CONFIG).exists() else {}


def find_weights(folder: str | os.PathLike) -> Any:
    """The file of arrays in a folder."""
    names = (ARRAYS, "pytorch_model.bin")
    for path in (epath.Path(folder) / name for name in names):
        if path.exists():
            return path
    raise CheckpointError(
        f"{folder} holds neither {' nor '.join(names)}; weights spread over several "
        "files are not read."
    )


def sha256(path: str | os.PathLike) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
