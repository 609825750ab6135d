"""Statistics against a plain loop over resampled image lists, hand counts and simulated truth."""

import subprocess
import sys

import numpy as np
import pytest

from segbench import stats
from segbench.types import Interval


def test_miou_of_hand_counts() -> None:
    """Two classes: 6/(8+7-6) and 0/(0+1-0); the third is neither there nor predicted."""
    counts = np.array([[6, 8, 7], [0, 0, 1], [0, 0, 0]])
    assert float(stats.miou(counts)) == pytest.approx(100 * (6 / 9 + 0) / 2)


def test_accuracies_of_hand_counts() -> None:
    """The second class is only predicted: it is in the mean IoU's classes and not in the mean accuracy's."""
    counts = np.array([[6, 8, 7], [0, 0, 3], [0, 0, 0], [1, 2, 1]])
    assert float(stats.pixel_accuracy(counts)) == pytest.approx(100 * 7 / 10)
    assert float(stats.mean_accuracy(counts)) == pytest.approx(100 * (6 / 8 + 1 / 2) / 2)
    assert stats.present(counts).tolist() == [True, True, False, True]
    assert stats.present(np.stack([counts, np.roll(counts, 1, 0)])).all()


def test_miou_of_nothing_does_not_exist() -> None:
    assert np.isnan(stats.miou(np.zeros((4, 3), int)))
    assert stats.Sampled(float(stats.miou(np.zeros((4, 3), int))), np.zeros(0)).estimate() is None


@pytest.mark.parametrize("summary", [stats.miou, stats.pixel_accuracy, stats.mean_accuracy])
def test_leading_axes_are_kept(summary: stats.Summary) -> None:
    summed = _counts(np.random.default_rng(0), sites=3, images=5, classes=4).sum(1)
    assert summary(summed).tolist() == [float(summary(site)) for site in summed]


def test_resamples_add_up_and_do_not_change() -> None:
    weights = stats.resamples(17, draws=50)
    assert weights.shape == (50, 17)
    assert (weights.sum(1) == 17).all()
    assert (weights == stats.resamples(17, draws=50)).all()
    assert (weights != stats.resamples(17, draws=50, seed=1)).any()
    assert (stats.resamples(17, draws=20) == weights[:20]).all()


def test_one_image_has_no_interval() -> None:
    counts = _counts(np.random.default_rng(0), sites=1, images=1, classes=4)
    draws = stats.miou_draws(counts, stats.resamples(1))
    assert draws.shape == (0, 1)
    assert stats.intervals(draws) == [None]
    assert stats.Sampled(41.0, draws[:, 0]).estimate() == stats.Estimate(41.0, None)


def test_draws_are_the_miou_of_each_resampled_list_of_images() -> None:
    """The slow twin writes every drawn image out as often as it was drawn."""
    counts = _counts(np.random.default_rng(1), sites=3, images=9, classes=5)
    counts[:, 1:, 4] = 0  # a class of one image only: some resamples do not hold it
    weights = stats.resamples(9, draws=40)
    fast = stats.miou_draws(counts, weights)
    assert (weights[:, 0] == 0).any()
    recall = stats.draws(stats.mean_accuracy, counts, weights)
    for draw, row in enumerate(weights):
        drawn = [image for image, times in enumerate(row) for _ in range(times)]
        for site in range(3):
            ious = []
            for k in range(5):
                hit, truth, predicted = (sum(int(counts[site, image, k, part]) for image in drawn) for part in range(3))
                if truth + predicted - hit:
                    ious.append(hit / (truth + predicted - hit))
            assert fast[draw, site] == pytest.approx(100 * sum(ious) / len(ious), rel=1e-12)
            assert recall[draw, site] == pytest.approx(float(stats.mean_accuracy(counts[site, drawn].sum(0))))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = _counts(np.random.default_rng(2), sites=2, images=30, classes=6)
    weights = stats.resamples(30, draws=100)
    whole = stats.miou_draws(counts, weights), stats.ratio_draws(counts[0, ..., 0], counts[0, ..., 1], weights)
    monkeypatch.setattr(stats, "_BLOCK", 60)
    pieces = stats.miou_draws(counts, weights), stats.ratio_draws(counts[0, ..., 0], counts[0, ..., 1], weights)
    assert (whole[0] == pieces[0]).all()
    assert np.array_equal(whole[1], pieces[1], equal_nan=True)


def test_ratio_draws_are_the_ratios_of_each_resampled_list() -> None:
    random = np.random.default_rng(3)
    bottom = random.integers(0, 4, (8, 2, 3))
    top = random.integers(0, bottom + 1)
    weights = stats.resamples(8, draws=30)
    fast = stats.ratio_draws(top, bottom, weights)
    assert fast.shape == (30, 2, 3)
    for draw, row in enumerate(weights):
        drawn = np.repeat(np.arange(8), row)
        slow = np.full((2, 3), np.nan)
        below = bottom[drawn].sum(0)
        slow[below > 0] = top[drawn].sum(0)[below > 0] / below[below > 0]
        assert np.allclose(fast[draw], slow, equal_nan=True)
    assert np.array_equal(stats.ratio(top, bottom), top.sum(0) / bottom.sum(0))


def test_rows_of_one_image_are_resampled_together() -> None:
    image = np.array([7, 3, 7, 3, 9])
    assert stats.per_image(np.array([1.0, 2.0, 4.0, 8.0, 16.0]), image).tolist() == [10.0, 5.0, 16.0]
    twice = np.repeat(np.random.default_rng(4).random(40), 2)  # two equal rows for each image say nothing new
    pairs, singles = np.repeat(np.arange(40), 2), np.arange(40)
    weights = stats.resamples(40)
    clustered, single = (
        stats.ratio_draws(stats.per_image(values, index), stats.per_image(np.ones(len(values)), index), weights)
        for values, index in ((twice, pairs), (twice[::2], singles))
    )
    assert np.allclose(clustered, single)


def test_interval_drops_draws_that_do_not_exist() -> None:
    draws = np.array([np.nan, *np.linspace(0, 100, 101), np.nan, -np.inf])
    assert stats.interval(draws) == Interval(2.5, 97.5)
    assert stats.interval(np.array([np.nan])) is None


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """200 simulated data sets of 80 images with two classes; the truth is the mIoU of a very large one."""
    random = np.random.default_rng(5)
    truth = float(stats.miou(_easy_and_hard(random, 200_000).sum(1))[0])
    covered = 0
    for _ in range(200):
        found = stats.interval(stats.miou_draws(_easy_and_hard(random, 80), stats.resamples(80, draws=300))[:, 0])
        covered += found is not None and found.low <= truth <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    """Both sites share how hard each image is; resampling them apart would count that twice."""
    counts = _counts(np.random.default_rng(6), sites=2, images=100, classes=4)
    counts[1] = counts[0]
    counts[1, :, :, 0] = np.maximum(counts[1, :, :, 0] - 1, 0)
    same = stats.miou_draws(counts, stats.resamples(100))
    other = stats.miou_draws(counts, stats.resamples(100, seed=1))
    first, second, apart = (stats.Sampled(0.0, drawn) for drawn in (same[:, 0], same[:, 1], other[:, 1]))
    assert np.std((second - first).drawn) < 0.25 * np.std((apart - first).drawn)


def test_draws_do_not_depend_on_the_number_of_threads() -> None:
    script = (
        "import numpy as np, hashlib; from segbench import stats; r = np.random.default_rng(0);"
        "c = r.integers(0, 900, (2, 300, 20, 3)); c[..., 1] += c[..., 0]; c[..., 2] += c[..., 0];"
        "print(hashlib.sha256(stats.miou_draws(c, stats.resamples(300, 200)).tobytes()).hexdigest())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", script], env={"OMP_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n}, capture_output=True,
            text=True, check=True,
        ).stdout
        for n in ("1", "2")
    }  # fmt: skip
    assert len(hashes) == 1


def _counts(random: np.random.Generator, sites: int, images: int, classes: int) -> np.ndarray:
    hit = random.integers(0, 50, (sites, images, classes))
    rest = random.integers(0, 60, (sites, images, classes, 2)) * random.integers(0, 2, (sites, images, classes, 1))
    return np.stack([hit, hit + rest[..., 0], hit + rest[..., 1]], -1).astype(np.int32)


def _easy_and_hard(random: np.random.Generator, images: int) -> np.ndarray:
    """Per image: two classes of varying size and difficulty, confused with each other; int [1, n, 2, 3]."""
    area = random.integers(10, 200, (images, 2))
    skill = random.beta([[8, 4]], [[2, 4]], (images, 2))
    hit = np.round(area * skill).astype(int)
    return np.stack([hit, area, hit + (area - hit)[:, ::-1]], -1)[None].astype(np.int32)
