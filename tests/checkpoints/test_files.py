"""Files that are missing, truncated or something else raise CheckpointError."""

import sys

import formats
import numpy as np
import pytest
import tiny

from vitjax.checkpoints.files import CheckpointError, open_arrays, read_json, sha256


def read_all(path):
    with open_arrays(path) as arrays:
        return {key: arrays[key]() for key in arrays}


@pytest.fixture
def written(tmp_path):
    model = tiny.make(tiny.CONFIGS["plain"])
    formats.save(tmp_path / "m.npz", formats.google(model))
    formats.save(tmp_path / "m.safetensors", formats.timm(model))
    return tmp_path


@pytest.mark.parametrize("file", ("m.npz", "m.safetensors"))
@pytest.mark.parametrize("keep", (0, 10, 1000, -100))
def test_a_truncated_file(written, file, keep):
    path = written / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated"):
        read_all(path)


@pytest.mark.parametrize("file", ("m.npz", "m.safetensors"))
def test_a_damaged_array_or_header(written, file):
    path = written / file
    content = path.read_bytes()
    for start in (20, len(content) // 2 if file == "m.npz" else 60):
        path.write_bytes(content[:start] + bytes(400) + content[start + 400 :])
        with pytest.raises(CheckpointError):
            read_all(path)


def test_a_missing_file_and_an_unknown_format(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint.*safetensors"):
        read_all(tmp_path / "m.npz")
    (tmp_path / "m.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="does not end in"):
        read_all(tmp_path / "m.txt")


def test_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", a=np.array([{"a": 1}], object))
    with pytest.raises(CheckpointError, match="pickle|truncated"):
        read_all(tmp_path / "m.npz")


def test_bfloat16_in_npz_is_restored(tmp_path):
    import ml_dtypes

    values = np.arange(6).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "m.npz", a=values)
    np.testing.assert_array_equal(read_all(tmp_path / "m.npz")["a"], values)


def test_torch_files_need_the_extra(tmp_path, monkeypatch):
    (tmp_path / "m.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError, match=r"vitjax\[torch\]"):
        read_all(tmp_path / "m.pth")


def test_json_may_begin_with_a_byte_order_mark_or_is_damaged(tmp_path):
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "config.json") == {"a": 1}
    for text in "{", "[]":
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
            read_json(tmp_path / "config.json")


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
