"""The explorer's data: what a page unpacks is what the run holds."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from vitjax.report import document, explorer
from vitjax.runner.results import Results

KINDS = {"u8": "u1", "u16": "<u2", "u32": "<u4", "i16": "<i2", "f4": "<f4"}


def unpack(pack):
    content, arrays = zlib.decompress(base64.b64decode(pack["bytes"])), {}
    for part in pack["layout"]:
        kind, count = np.dtype(KINDS[part["kind"]]), int(np.prod(part["shape"]))
        size = kind.itemsize * count
        values = np.frombuffer(content[:size], kind).reshape(part["shape"])
        arrays[part["name"]], content = values, content[size:]
    assert not content
    return arrays


def token_rows(*, images, classes, depth=3, tokens=17, patches=16, heads=2, seed=3):
    """(axes, values) of what the recipe `tokens` adds, and unlike any other rows."""
    draw = np.random.default_rng(seed)
    best = draw.random((images, depth, tokens, classes)).argsort(-1)[..., :5]
    shares = np.sort(draw.dirichlet(np.ones(5), (images, depth, tokens)))[..., ::-1]
    maps = draw.normal(size=(2, images, depth, heads, patches)).astype(np.float32)
    maps[1, 0, 1, 1] = 0
    axes = ("image", "layer", "token", "top")
    of_heads = ("image", "layer", "head", "patch")
    return {
        "token_classes": (axes, best.astype(np.int32)),
        "token_probabilities": (axes, shares.astype(np.float32)),
        "attended": (of_heads, np.abs(maps[0])),
        "helpful": (of_heads, maps[1]),
    }


@pytest.fixture
def tokens_run(make_run):
    more = token_rows(images=9, classes=7)
    return make_run(
        classes=7, pictures=4, masks=True, more=more, manifest={"recipe": "tokens"}
    )


def packs(found):
    return {key: json.loads(text) for key, text in found["packs"]}


def test_the_page_gets_what_the_run_holds(tokens_run: Results):
    found = explorer.explorer(["a"], [tokens_run])
    data, parts = json.loads(found["data"]), packs(found)
    assert found["complete"] and list(parts) == [f"explorer-0-{n}" for n in range(4)]
    (entry,) = data["runs"]
    assert entry["prefix"] == ["[CLS]"] and entry["grid"] == [4, 4]
    assert (entry["depth"], entry["heads"]) == (3, 2)
    for picture in entry["pictures"]:
        image = picture["image"]
        assert picture["label"] == tokens_run["label"][image]
        assert picture["prediction"] == tokens_run["prediction"][image]
        assert picture["name"] == f"file {image}.jpg"
        pack = parts[f"explorer-0-{image}"]
        arrays = unpack(pack)
        np.testing.assert_array_equal(
            arrays["rank"], tokens_run["rank_residual"][image]
        )
        np.testing.assert_array_equal(
            arrays["classes"], tokens_run["token_classes"][image]
        )
        shares = arrays["probabilities"] / 255
        assert np.abs(shares - tokens_run["token_probabilities"][image]).max() < 0.002
        kinds = tokens_run["patch_label"][image]
        np.testing.assert_array_equal(arrays["mask"], np.where(kinds < 0, 2, kinds))
        for name in ("attended", "helpful"):
            scale = arrays[f"{name}_scale"][..., None]
            error = np.abs(scale * arrays[name] - tokens_run[name][image])
            assert (error <= 0.5001 * scale).all()
        content = base64.b64decode(pack["url"].partition("base64,")[2])
        pixels = np.asarray(Image.open(io.BytesIO(content)))
        np.testing.assert_array_equal(pixels, tokens_run["picture"][image])


def test_numbers_lie_where_their_size_allows(tokens_run):
    """A typed array's offset is a multiple of its element's size."""
    for pack in packs(explorer.explorer(["a"], [tokens_run])).values():
        place = 0
        for part in pack["layout"]:
            size = np.dtype(KINDS[part["kind"]]).itemsize
            assert place % size == 0
            place += size * int(np.prod(part["shape"]))


def test_a_run_of_another_recipe_lacks_only_what_it_did_not_write(masked_run):
    found = explorer.explorer(["a"], [masked_run])
    (first, *_) = packs(found).values()
    assert not found["complete"]
    assert set(unpack(first)) == {"rank", "mask"}


def test_without_labels_there_are_no_ranks(make_run):
    run = make_run(change={"label": np.full(9, -1, np.int32)})
    found = explorer.explorer(["a"], [run])
    assert all(unpack(pack) == {} for pack in packs(found).values())
    assert json.loads(found["data"])["runs"][0]["pictures"][0]["label"] == -1


def test_shares_of_a_peaked_head_survive():
    """195 patches share what one leaves: each is 1/450 of it."""
    attended = np.full((1, 1, 196), 0.3 / 195, np.float32)
    attended[..., 7] = 0.7
    scale, steps = explorer.quantised(attended)
    found = scale[..., None] * steps
    np.testing.assert_allclose(found / found.sum(), attended, rtol=0.01)


def test_a_picture_that_is_there_twice_is_shown_once(make_run):
    places = np.array([0, 1, 0, 2], np.int32)
    run = make_run(pictures=4, change={"picture_image": places})
    assert [one.image for one in explorer.chosen(run)] == [0, 1, 2]


def test_absent_tokens_and_many_classes():
    ranks = np.array([[-1, 0, 69_999]], np.int32)
    told = explorer.told({"label": 1, "rank_residual": ranks}, classes=70_000)
    assert told["rank"].tolist() == [[2**32 - 1, 0, 69_999]]
    told = explorer.told({"label": 1, "rank_residual": ranks[:, :2]}, classes=1000)
    assert told["rank"].dtype == np.uint16 and told["rank"].tolist() == [[65_535, 0]]


def test_pictures_that_are_not_finished_or_too_many(make_run):
    done = np.ones(9, bool)
    done[1] = False
    run = make_run(pictures=5, change={"done": done}, manifest={"finished": None})
    assert [one.image for one in explorer.chosen(run, most=3)] == [0, 2, 3]
    assert explorer.explorer(["a"], [make_run(pictures=0)]) is None


def test_large_pictures_are_jpeg():
    pixels = np.full((200, 130, 3), 90, np.uint8)
    url = explorer.picture_url(pixels)
    assert url.startswith("data:image/jpeg;base64,") and len(url) < 3000


def test_no_text_ends_the_element_around_it():
    text = explorer.in_script({"</script><!--": "&amp;\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script><!--": "&amp;\u2028"}


def test_a_tokens_run_beside_another_adds_its_explorer_only(make_run, tokens_run):
    other = make_run(classes=7)
    shown, runs = document.companions([other, tokens_run])
    assert shown == [tokens_run] and runs == [other]
    for change in (
        {"data": {"id": "sha256:other"}},
        {"model": {"parameters_sha256": "other"}},
        {"dtype": "bfloat16"},
    ):
        elsewhere = make_run(classes=7, manifest=change)
        shown, runs = document.companions([elsewhere, tokens_run])
        assert shown == runs == [elsewhere, tokens_run]
    bare = make_run(classes=7, pictures=0, manifest={"recipe": "tokens"})
    assert document.companions([other, bare]) == ([other], [other])
    assert document.companions([tokens_run]) == ([tokens_run], [tokens_run])
