"""Checkpoint files: named arrays in npz, safetensors and PyTorch files, and back."""

import contextlib
import functools
import hashlib
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl")
SUFFIXES = (".npz", ".safetensors", *TORCH_SUFFIXES)
ARRAYS, CONFIG = "model.safetensors", "config.json"
"""The two files of a folder that `vitjax.save` writes."""
INDEX = ".index.json"
"""The end of the name of a file that says which shard holds which array."""
WEIGHTS = (
    "open_clip_model.safetensors",
    ARRAYS,
    ARRAYS + INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin" + INDEX,
    "open_clip_pytorch_model.bin",
)
"""The names that libraries give to the weights in a folder, by preference: beside
open_clip's, timm's of the same model lack the temperature."""

Arrays = Mapping[str, Callable[[], np.ndarray]]
"""Keys, and functions that read their arrays."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit the model."""


@contextlib.contextmanager
def open_arrays(path: str | os.PathLike) -> Iterator[Arrays]:
    """A checkpoint file, or the index of a sharded one, local or remote."""
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"There is no checkpoint at {path}. Give the path of an existing "
            f"{', '.join(SUFFIXES[:3])} file, or of a folder that vitjax wrote."
        )
    reader = read_shards if path.name.endswith(INDEX) else READERS[file_format(path)]
    with reader(path) as arrays:
        yield arrays


def file_format(path) -> str:
    """A file's format by its first bytes, else its ending: PyTorch's have any."""
    with path.open("rb") as file:
        head = file.read(9)
        if head[:2] == b"PK":
            with contextlib.suppress(zipfile.BadZipFile, OSError, RuntimeError):
                names = zipfile.ZipFile(file).namelist()
                return "torch" if any(n.endswith(".pkl") for n in names) else "npz"
    if head[8:] == b"{":
        return "safetensors"
    if head[:1] == b"\x80" and path.suffix not in SUFFIXES[:2]:
        return "torch"
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{path} is in no known format, and it does not end in one of {SUFFIXES}."
        )
    return "torch" if path.suffix in TORCH_SUFFIXES else path.suffix[1:]


@contextlib.contextmanager
def read_shards(path) -> Iterator[Arrays]:
    """Weights in several files, by the index that lies beside them."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} is damaged: it has no weight_map.")
    arrays: dict[str, Callable[[], np.ndarray]] = {}
    with contextlib.ExitStack() as stack:
        for name in sorted({str(file) for file in weight_map.values()}):
            shard = path.parent / name
            if epath.Path(name).name != name or name.endswith(INDEX):
                raise CheckpointError(f"{path} names {name!r}, no file beside it.")
            if not shard.exists():
                raise CheckpointError(
                    f"{shard} is missing, one of the files that {path.name} names: "
                    "download it too."
                )
            arrays |= stack.enter_context(open_arrays(shard))
        if arrays.keys() != weight_map.keys():
            odd = sorted(arrays.keys() ^ weight_map.keys())
            raise CheckpointError(
                f"{path} and the files that it names hold different arrays, such as "
                f"{odd[0]}: they are of different checkpoints."
            )
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

    @contextlib.contextmanager
    def known_dtypes(key):
        try:
            yield
        except (AttributeError, KeyError) as error:  # numpy has no such dtype
            raise CheckpointError(
                f"{path}: the array {key} cannot be read ({error}). Arrays of float8 "
                "and smaller are not: save it as float16, bfloat16 or float32, "
                "multiplied by its scale if it has one."
            ) from error

    def read(key):  # pages of a mapped file count until it is closed
        opened = safetensors.safe_open(os.fspath(path), framework="numpy")
        with known_dtypes(key), opened as file:
            return file.get_tensor(key)

    try:
        if os.path.exists(path):
            with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
                keys = list(file.keys())
            yield {key: functools.partial(read, key) for key in keys}
        else:
            with known_dtypes("of unknown name"):
                arrays = safetensors.numpy.load(path.read_bytes())
            yield {key: functools.partial(np.asarray, arrays[key]) for key in arrays}
    except safetensors.SafetensorError as error:
        raise broken(path, error) from error


@contextlib.contextmanager
def read_torch(path) -> Iterator[Arrays]:
    """What PyTorch saved, as weights only, or TorchScript; nested keys get dots."""
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"Reading {path} needs PyTorch: pip install 'vitjax[torch]', or convert "
            "the file to .safetensors where PyTorch is installed."
        ) from error
    try:
        with path.open("rb") as file:
            names = zipfile.ZipFile(file).namelist() if zipfile.is_zipfile(file) else []
            file.seek(0)
            if any("/code/" in name for name in names):  # TorchScript, as OpenAI's CLIP
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch is leaving this format
                    module = torch.jit.load(file, map_location="cpu")
                state = module.state_dict()
            else:
                state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises its own, zipfile's and pickle's
        # Not torch's own words: they advise to load it unsafely.
        if blocked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} holds a Python object, {blocked[1]}, beside its arrays. "
                "Unpickling objects may run code, so that such files are not read: "
                "where you trust it, load it with torch and save the state dict alone, "
                "torch.save(model.state_dict(), file)."
            ) from error
        reason = f"{type(error).__name__}: it is damaged, or holds more than arrays"
        raise broken(path, reason) from error

    def read(key, tensor):
        if tensor.is_quantized:
            raise not_floating(key, tensor.dtype)
        tensor = tensor.detach().to_dense()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

    def tensors(tree, prefix=""):
        if isinstance(tree, torch.Tensor):
            yield prefix.removesuffix("."), tree
        items = tree.items() if isinstance(tree, dict) else ()
        items = enumerate(tree) if isinstance(tree, list | tuple) else items
        for key, value in items:
            yield from tensors(value, f"{prefix}{key}.")

    yield {key: functools.partial(read, key, value) for key, value in tensors(state)}


READERS = {"npz": read_npz, "safetensors": read_safetensors, "torch": read_torch}


def not_floating(key: str, dtype) -> CheckpointError:
    """The error for an array of integers where weights are expected."""
    return CheckpointError(
        f"The array {key} is {dtype}, not floating-point: quantized weights are not "
        "read, since their scales are not known. Dequantize the file first."
    )


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON object; its text may begin with a byte order mark."""
    try:
        content = json.loads(epath.Path(path).read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object.")
    return content


def find_weights(folder: str | os.PathLike) -> Any:
    """The file of arrays in a folder, or the index of its shards; a file itself."""
    folder = epath.Path(folder)
    if not folder.is_dir():
        return folder
    for path in (folder / name for name in WEIGHTS):
        if path.exists():
            return path
    others = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(others) == 1:
        return others[0]
    names = ", ".join(path.name for path in others[:4]) or "no file of weights"
    raise CheckpointError(
        f"{folder} holds none of {', '.join(WEIGHTS)}, but {names}: give the path of "
        "the file itself."
    )


def sha256(path: str | os.PathLike) -> str:
    """Hex digest of a file's bytes; of an index, that of its shards' digests."""
    digest, path = hashlib.sha256(), epath.Path(path)
    if path.name.endswith(INDEX):
        for name in sorted(set(read_json(path)["weight_map"].values())):
            digest.update(sha256(path.parent / name).encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
