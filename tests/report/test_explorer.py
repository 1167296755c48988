"""The explorer's data: what a page unpacks is what the run holds."""

import base64
import io
import zlib

import numpy as np
from fake_runs import fake_run
from PIL import Image

from vitjax.report import explorer
from vitjax.report.per_image import Run


def read(*results, **options):
    """(data, key -> (image URL, arrays)) of an explorer."""
    runs = [Run(each, name) for each, name in zip(results, "abc")]
    made = explorer.explorer_data(runs, **options)
    packs = {key: (p["url"], unpack(p["arrays"])) for key, p in made["packs"].items()}
    return made["data"], packs


def unpack(arrays):
    return {
        name: np.frombuffer(
            zlib.decompress(base64.b64decode(entry["bytes"])),
            np.dtype(entry["type"].removesuffix("Array").lower()).newbyteorder("<"),
        ).reshape(entry["shape"])
        for name, entry in arrays.items()
    }


def tokens_run(**options):
    return fake_run("tokens", classes=7, previews=4, masks=True, **options)


def test_the_page_gets_what_the_run_holds():
    run = tokens_run()
    data, packs = read(run)
    assert list(packs) == [f"explorer-0-{n}" for n in range(4)]
    (entry,) = data["runs"]
    assert entry["prefix"] == ["[CLS]"] and entry["grid"] == (4, 4)
    assert (entry["depth"], entry["heads"]) == (3, 2)
    for place, (url, arrays) in enumerate(packs.values()):
        about = entry["images"][place]
        assert about["index"] == place
        assert about["label"] == run["label"][place]
        assert about["prediction"] == run["prediction"][place]
        for key, name in (
            ("rank", "rank_residual"),
            ("classes", "token_classes"),
            ("on_object", "patch_label"),
        ):
            np.testing.assert_array_equal(arrays[key], run[name][place])
        error = arrays["probabilities"] / 255 - run["token_probabilities"][place]
        assert np.abs(error).max() < 0.002
        for key, name in (("attention", "attended"), ("relevancy", "helpful")):
            scale = arrays[f"{key}_scale"][..., None]
            error = np.abs(scale * arrays[key] - run[name][place].values)
            assert (error <= 0.51 * scale).all()
        content = base64.b64decode(url.partition("base64,")[2])
        pixels = np.asarray(Image.open(io.BytesIO(content)))
        np.testing.assert_array_equal(pixels, run["preview_image"][place])


def test_what_a_run_lacks_is_left_out():
    data, packs = read(fake_run(masks=True))
    assert all(set(arrays) == {"rank", "on_object"} for _, arrays in packs.values())
    unlabeled = {"label": np.full(9, -1, np.int32)}
    data, packs = read(fake_run(change=unlabeled, class_token=False, registers=1))
    assert all(arrays == {} for _, arrays in packs.values())
    assert data["runs"][0]["images"][0]["label"] == -1
    assert data["runs"][0]["prefix"] == ["register 0"]
    assert data["runs"][0]["pool"] == "mean"
    assert explorer.explorer_data([Run(fake_run(previews=0))]) == {}


def test_no_more_images_than_the_limit():
    data, packs = read(tokens_run(), fake_run(classes=7, previews=0), limit=3)
    assert [image["index"] for image in data["runs"][0]["images"]] == [0, 1, 2]
    assert len(data["runs"]) == 1 and len(packs) == 3


def test_shares_of_a_peaked_head_survive():
    """195 patches share what one leaves: each is 1/450 of it."""
    attention = np.full((1, 1, 196), 0.3 / 195, np.float32)
    attention[..., 7] = 0.7
    scale, steps = explorer.quantize(attention)
    restored = scale[..., None] * steps
    np.testing.assert_allclose(restored / restored.sum(), attention, rtol=0.01)


def test_large_images_are_jpeg():
    _, packs = read(fake_run(image_size=(160, 320), patch_size=80))
    assert all(url.startswith("data:image/jpeg;base64,") for url, _ in packs.values())
