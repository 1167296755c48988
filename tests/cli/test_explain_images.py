"""Maps of picture files."""

import numpy as np
import pytest

import vitjax
from vitjax.cli.explain_images import explain_pictures
from vitjax.data.images import ImageError


@pytest.fixture(scope="module")
def files(photos):
    return sorted(photos.rglob("*.png"))[:2]


def test_they_are_the_maps_of_what_the_model_sees(tiny, files):
    found = explain_pictures(tiny, files, methods=("chefer", "relevancy"), target="dog")
    preprocess = vitjax.Preprocess(32, 32)
    from PIL import Image

    images = []
    for path in files:
        with Image.open(path) as picture:
            images.append(preprocess(picture))
    images = np.stack(images)
    assert found.names == tuple(path.name for path in files)
    assert found.target.tolist() == [3, 3]
    logits, _ = vitjax.forward(tiny, images)
    np.testing.assert_array_equal(found.prediction, np.argmax(logits, -1))
    for method, maps in found.maps.items():
        expected = vitjax.explain(tiny, images, 3, method=method)
        top = np.abs(expected).max()
        np.testing.assert_allclose(
            maps.reshape(2, 16), expected, atol=1e-4 * top, err_msg=method
        )


def test_each_pictures_own_answer_is_explained_by_default(tiny, files):
    found = explain_pictures(
        tiny, files[:1], methods=("relevancy",), layers=(1,), heads=(0,)
    )
    np.testing.assert_array_equal(found.target, found.prediction)
    assert found.maps["relevancy"].shape == (1, 4, 4)


def test_what_cannot_be_explained_is_said(tiny, files, tmp_path):
    with pytest.raises(ValueError, match="one map of the whole model"):
        explain_pictures(tiny, files, methods=("chefer",), layers=(0,))
    with pytest.raises(ValueError, match="Near: dog"):
        explain_pictures(tiny, files, methods=("relevancy",), target="dgo")
    with pytest.raises(ValueError, match="at least one picture"):
        explain_pictures(tiny, (), methods=("relevancy",))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        explain_pictures(tiny, [broken], methods=("relevancy",))
