"""The explorer's data: what a page unpacks is what the run holds."""

import base64
import io
import zlib

import numpy as np
import pytest
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
    assert sorted(packs) == [f"explorer-0-{n}" for n in range(4)]
    (entry,) = data["runs"]
    assert entry["prefix"] == ["[CLS]"] and entry["grid"] == (4, 4)
    assert (entry["depth"], entry["heads"]) == (3, 2)
    for place in range(4):
        url, arrays = packs[f"explorer-0-{place}"]
        about = entry["images"][place]
        assert about["index"] == place
        assert about["label"] == run["label"][place]
        assert about["prediction"] == run["prediction"][place]
        for key, name in (
            ("rank", "rank_residual"),
            ("classes", "token_classes"),
            ("on_object", "patch_label"),
            ("chosen", "chosen_classes"),
            ("ranks", "chosen_ranks"),
            ("normalizer", "token_normalizer"),
            ("between_largest", "token_attention_largest"),
        ):
            np.testing.assert_array_equal(arrays[key], run[name][place])
        error = arrays["probabilities"] / 255 - run["token_probabilities"][place]
        assert np.abs(error).max() < 0.002
        for key, name in (("attention", "attended"), ("relevancy", "helpful")):
            scale = arrays[f"{key}_scale"][..., None]
            error = np.abs(scale * arrays[key] - run[name][place].values)
            assert (error <= 0.51 * scale).all()
        logits = arrays["logits_scale"][:, None, None] * arrays["logits"]
        np.testing.assert_allclose(logits, run["chosen_logits"][place], atol=0.0101)
        error = arrays["between"] / 63 - run["token_attention"][place].values / 255
        assert np.abs(error).max() <= 0.51 / 63
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
    assert data["opening"]["layer"] == 2 and data["opening"]["token"] == 0
    assert data["runs"][0]["prefix"] == ["register 0"] and data["runs"][0]["pooled"]
    assert explorer.explorer_data([Run(fake_run(previews=0))]) == {}


def test_arrays_of_every_token_and_class_go_to_as_many_images_as_fit(monkeypatch):
    run = Run(tokens_run(), "a")
    made = explorer.explorer_data([run])
    opening = f"explorer-0-{made['data']['opening']['image']}"
    size = max(map(explorer.packed_bytes, made["packs"].values()))
    monkeypatch.setattr(explorer, "PAGE_BYTES", 2.5 * size)
    made = explorer.explorer_data([run])
    large = {key for key, pack in made["packs"].items() if "chosen" in pack["arrays"]}
    assert 0 < made["whole"] == len(large) < 4 and opening in large
    assert all("rank" in pack["arrays"] for pack in made["packs"].values())


@pytest.mark.parametrize("masks", (True, False))
def test_it_opens_where_there_is_something_to_see(masks):
    """Image 2 is right and has a mask; image 0 is wrong, image 1 has no object."""
    ranks = np.full((9, 3, 17), 4, np.int32)
    ranks[:, 0] = np.arange(17) % 5  # the first block varies most
    ranks[0, 2, 9] = ranks[1, 2, 5] = ranks[2, 2, 6] = 0
    patch_label = np.zeros((9, 16), np.int8)
    patch_label[[0, 2], 4:6] = 1
    label = np.zeros(9, np.int32)
    prediction = np.array([1, *8 * [0]], np.int32)
    change = {"rank_residual": ranks, "label": label, "prediction": prediction}
    change |= {"patch_label": patch_label} if masks else {}
    data, _ = read(fake_run(previews=9, masks=masks, change=change))
    image = 2 if masks else 1
    expected = {"run": 0, "image": image, "layer": 2, "token": 6 if masks else 5}
    assert data["opening"] == expected


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
