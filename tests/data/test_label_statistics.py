import numpy as np
import pytest

from segbench.data import label_statistics

CLASSES = ("sky", "road", "tree", "car")
IMAGES, PIXELS = [90, 40, 30, 7], [90_000, 20_000, 5_000, 800]


def wrong(images=IMAGES, pixels=PIXELS, tolerance=0.0, slack=0, published_images=IMAGES, published_pixels=PIXELS):
    published = {
        "images": published_images,
        "pixels": published_pixels,
        "tolerance": tolerance,
        "slack": slack,
        "source": "somebody",
    }
    return list(label_statistics.wrong(CLASSES, np.array(images), np.array(pixels), published))


def test_equal_counts_are_right():
    assert wrong() == []


def test_every_wrong_class_is_named_with_both_counts():
    (said,) = wrong(images=[90, 41, 30, 5])
    assert said == (
        "2 of 4 classes do not have the images that somebody counted: road 41 instead of 40, car 5 instead of 7"
    )


@pytest.mark.parametrize(("pixels", "right"), [(20_200, True), (20_201, False), (19_800, True), (19_799, False)])
def test_pixels_may_differ_by_the_tolerance_and_no_more(pixels, right):
    assert (wrong(pixels=[90_000, pixels, 5_000, 800], tolerance=0.01, slack=500) == []) == right


@pytest.mark.parametrize(("images", "right"), [(9, True), (10, False), (5, True), (4, False)])
def test_images_may_differ_by_the_slack_where_that_is_more(images, right):
    assert (wrong(images=[90, 40, 30, images], tolerance=0.01, slack=2) == []) == right


def test_what_nobody_counted_is_never_wrong():
    assert wrong(images=[5, 40, 30, 7], published_images=[None, 40, 30, 7], published_pixels=None) == []
    (said,) = wrong(images=[5, 40, 30, 8], published_images=[None, 40, 30, 7], published_pixels=None)
    assert "car 8 instead of 7" in said


@pytest.mark.parametrize("step", [1, -1])
def test_a_shift_by_one_class_is_called_one(step):
    random = np.random.default_rng(0)
    images, classes = random.integers(100, 9000, 150), [str(number) for number in range(150)]
    published = {"images": images.tolist(), "pixels": None, "tolerance": 0.01, "slack": 2, "source": "somebody"}
    (said,) = label_statistics.wrong(classes, np.roll(images, step), images, published)
    assert f"shifted by {step:+d}" in said
    assert " ... " not in said
    assert "...;" in said
    (said,) = label_statistics.wrong(classes, random.permutation(images), images, published)
    assert "shifted" not in said
