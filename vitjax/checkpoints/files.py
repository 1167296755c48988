"""Bytes on disk to named arrays, and back; nothing here knows what they mean."""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

SUFFIXES = (".npz", ".safetensors", ".pth", ".pt", ".bin")
ARRAYS, CONFIG = "model.safetensors", "config.json"
"""The two files of our own folder."""

Arrays = Mapping[str, np.ndarray]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit the model."""


@contextlib.contextmanager
def open_arrays(path: str | os.PathLike) -> Iterator[Arrays]:
    """A checkpoint file as a mapping; npz and safetensors read an array when asked.

    Args:
        path: a `.npz`, `.safetensors` or `.pth` file, local or remote (`gs://`).

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is truncated, of an unknown format, or holds pickles.
    """
    from etils import epath

    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"There is no checkpoint at {path}. Give the path of an existing "
            f"{', '.join(SUFFIXES[:3])} file, or of a folder that vitjax wrote."
        )
    readers = {".npz": read_npz, ".safetensors": read_safetensors}
    reader = readers.get(path.suffix, read_torch)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{path} does not end in one of {SUFFIXES}, so its format is not known."
        )
    with reader(path) as arrays:
        yield arrays


def broken(path, reason) -> CheckpointError:
    """The error for a file that is there but cannot be read."""
    return CheckpointError(
        f"{path} cannot be read as {path.suffix} ({reason}). It is probably truncated "
        "or not such a file: compare its size with the source's and download it again."
    )


class NpzArrays(Mapping):
    """An npz file; bfloat16, which numpy saves as two void bytes, is restored."""

    def __init__(self, path, npz):
        self.path, self.npz = path, npz

    def __getitem__(self, key):
        try:
            array = self.npz[key]
        except KeyError:
            raise
        except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise broken(self.path, error) from error
        if array.dtype == np.dtype("V2"):
            import ml_dtypes

            return array.view(ml_dtypes.bfloat16)
        return array

    def __iter__(self):
        return iter(self.npz.files)

    def __len__(self):
        return len(self.npz.files)


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
        yield NpzArrays(path, npz)


class SafetensorsArrays(Mapping):
    """A safetensors file."""

    def __init__(self, file):
        self.file, self.names = file, tuple(file.keys())

    def __getitem__(self, key):
        if key not in self.names:
            raise KeyError(key)
        return self.file.get_tensor(key)

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)


@contextlib.contextmanager
def read_safetensors(path) -> Iterator[Arrays]:
    """Hugging Face's format: a header and raw bytes."""
    import safetensors
    import safetensors.numpy

    try:
        if os.path.exists(path):
            with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
                yield SafetensorsArrays(file)
        else:
            yield safetensors.numpy.load(path.read_bytes())
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
    yield {
        key: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        for key, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }


def write_folder(
    folder: str | os.PathLike, arrays: dict[str, np.ndarray], config: dict[str, Any]
) -> None:
    """Write our own folder: the arrays as safetensors, the rest as JSON.

    Args:
        folder: made where it does not exist.
        arrays: name to array.
        config: everything else that makes the model, JSON-serialisable.
    """
    import safetensors.numpy
    from etils import epath

    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    (folder / ARRAYS).write_bytes(safetensors.numpy.save(contiguous))
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The JSON beside the arrays of our own folder, or of a Hugging Face model.

    Raises:
        CheckpointError: the folder holds none, or not valid JSON.
    """
    from etils import epath

    path = epath.Path(folder) / CONFIG
    if not path.exists():
        raise CheckpointError(
            f"{folder} is not a folder that `vitjax convert` wrote: it has no {CONFIG}."
        )
    return read_json(path)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file is damaged, or holds something else.
    """
    from etils import epath

    try:
        written = json.loads(epath.Path(path).read_text())
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged, for it is not JSON: {error}."
        ) from error
    if not isinstance(written, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object.")
    return written


def read_beside(path: str | os.PathLike) -> dict[str, Any]:
    """The config.json in the folder of a checkpoint file; empty where there is none."""
    from etils import epath

    folder = epath.Path(path).parent
    return read_config(folder) if (folder / CONFIG).exists() else {}


def find_weights(folder: str | os.PathLike) -> Any:
    """The file of arrays in a folder.

    Raises:
        CheckpointError: there is none, or they are spread over several files.
    """
    from etils import epath

    names = (ARRAYS, "pytorch_model.bin")
    found = [epath.Path(folder) / n for n in names if (epath.Path(folder) / n).exists()]
    if not found:
        raise CheckpointError(
            f"{folder} holds neither {' nor '.join(names)}; weights spread over "
            "several files are not read."
        )
    return found[0]


def sha256(path: str | os.PathLike) -> str:
    """Hex digest of a file's bytes."""
    from etils import epath

    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
