"""Statistics against a plain loop over resampled image lists, hand counts and simulated truth."""

import math
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


def test_miou_of_nothing_does_not_exist() -> None:
    assert np.isnan(stats.miou(np.zeros((4, 3), int)))
    (nothing,) = stats.sampled(stats.miou, np.zeros((1, 5, 4, 3), int), stats.Units.among(5))
    assert nothing.estimate() is None


def test_one_image_has_no_interval() -> None:
    counts = _counts(np.random.default_rng(0), sites=1, images=1, classes=4)
    (alone,) = stats.sampled(stats.miou, counts, stats.Units.among(1))
    found = alone.estimate()
    assert found == stats.Estimate(float(stats.miou(counts[0, 0])), None, None, 1)
    (alone,) = stats.sampled(stats.miou, np.repeat(counts, 6, 1), stats.Units.among(6, ["paris"] * 6))
    assert alone.estimate() == found


def test_a_number_that_one_image_carries_has_no_interval() -> None:
    """Without the only image that counts there is no number: how far it would move cannot be told."""
    bottom = np.array([[0, 4], [8, 4], [0, 4]])
    carried, shared = stats.sampled_ratio(bottom // 2, bottom, stats.Units.among(3))
    assert carried.estimate() == stats.Estimate(50.0, None, None, 3)
    assert shared.estimate() == stats.Estimate(50.0, Interval(50.0, 50.0), 0.0, 3)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = _counts(np.random.default_rng(2), sites=2, images=30, classes=6)
    weights = stats.resamples(30, draws=100)
    whole = stats.miou_draws(counts, weights)
    monkeypatch.setattr(stats, "_BLOCK", 60)
    assert (whole == stats.miou_draws(counts, weights)).all()


@pytest.mark.parametrize("clusters", [None, ["b", "a", "a", "c", "b", "b", "a", "d"]])
def test_each_unit_is_left_out_once(clusters: list[str] | None) -> None:
    """The slow twin sums the images that are left."""
    counts = _counts(np.random.default_rng(3), sites=2, images=8, classes=5)
    counts[:, 1:, 4] = 0  # a class of one image only
    units = stats.Units.among(8, clusters)
    names = np.array(clusters or range(8))
    left = [names != name for name in dict.fromkeys(names.tolist())]
    for site, found in zip(counts, stats.sampled(stats.miou, counts, units), strict=True):
        slow = [float(stats.miou(site[keep].sum(0))) for keep in left]
        assert found.value == float(stats.miou(site.sum(0)))
        assert found.again.tolist() == slow
        assert (found.units, found.method) == (len(left), "leaving out")
    top, bottom = counts[0, ..., 0], counts[0, ..., 1]
    for column, found in enumerate(stats.sampled_ratio(top, bottom, units)):
        slow = [100 * top[keep, column].sum() / max(bottom[keep, column].sum(), 1) for keep in left]
        there = [bottom[keep, column].any() for keep in left]
        np.testing.assert_allclose(found.again, np.where(there, slow, np.nan))


def test_the_error_of_a_mean_is_the_textbooks() -> None:
    """Leaving out single images of equal size gives s / sqrt(n), and t(n - 1) makes an interval of it."""
    values = np.random.default_rng(4).integers(0, 100, (12, 1))
    (found,) = stats.sampled_ratio(values, np.full((12, 1), 100), stats.Units.among(12))
    error = values.std(ddof=1) / np.sqrt(12)
    estimate = found.estimate()
    assert estimate is not None
    assert estimate.error == pytest.approx(error)
    assert estimate.interval is not None
    assert estimate.interval.high - estimate.value == pytest.approx(2.200985 * error)  # t(11), from a printed table


def test_equal_images_of_one_cluster_say_nothing_new() -> None:
    values = np.random.default_rng(5).integers(0, 100, (40, 1))
    full = np.full((40, 1), 100)
    (single,) = stats.sampled_ratio(values, full, stats.Units.among(40))
    (double,) = stats.sampled_ratio(
        np.repeat(values, 2, 0), np.repeat(full, 2, 0), stats.Units.among(80, [f"{i // 2}" for i in range(80)])
    )
    (apart,) = stats.sampled_ratio(np.repeat(values, 2, 0), np.repeat(full, 2, 0), stats.Units.among(80))
    assert double.error == pytest.approx(single.error)
    assert apart.error < 0.75 * double.error


def test_units_of_some_images_are_those_that_they_belong_to() -> None:
    units = stats.Units.among(6, ["a", "a", "b", "c", "c", "c"]).taking(np.array([0, 3, 5]))
    assert (units.count, units.of.tolist(), units.kind) == (2, [0, 1, 1], "clusters")
    assert (units.drawn(20).sum(1) > 0).all()
    assert (units.drawn(20)[:, 1] == units.drawn(20)[:, 2]).all()
    with pytest.raises(ValueError, match="3 names of clusters for 4 images"):
        stats.Units.among(4, ["a", "b", "c"])


def test_rows_of_one_image_are_summed() -> None:
    image = np.array([7, 3, 7, 3, 9])
    assert stats.per_image(np.array([1.0, 2.0, 4.0, 8.0, 16.0]), image).tolist() == [10.0, 5.0, 16.0]


def test_medians_are_those_of_each_resampled_list() -> None:
    random = np.random.default_rng(6)
    values, image = random.integers(0, 30, (25, 3)), np.sort(random.integers(0, 10, 25))
    image[:10] = np.arange(10)
    units = stats.Units.among(10)
    rows = units.drawn()
    for column, found in enumerate(stats.sampled_median(values, image, units)):
        assert found.value == np.median(values[:, column])
        for draw in range(50):
            drawn = np.repeat(values[:, column], rows[draw][image])
            assert found.again[draw] == np.median(drawn)


def test_few_units_widen_the_interval_of_a_median() -> None:
    """With 60 images percentiles; with three clusters of the same images the t of two degrees of freedom."""
    values, image = np.random.default_rng(7).normal(50, 9, (60, 1)), np.arange(60)
    (many,) = stats.sampled_median(values, image, stats.Units.among(60))
    (few,) = stats.sampled_median(values, image, stats.Units.among(60, [f"{i % 3}" for i in range(60)]))
    assert many.estimate().interval == stats.interval(many.again)
    estimate = few.estimate()
    half = 4.302653 * np.sqrt(3 / 2) * few.again.std()
    assert estimate.interval.high - estimate.value == pytest.approx(half)


def test_t_quantiles_are_those_of_printed_tables() -> None:
    for probability, freedom, printed in (
        (0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 30, 2.0423), (0.975, 100, 1.9840), (0.8, 5, 0.9195),
        (0.995, 10, 3.1693), (0.9995, 3, 12.9240),
    ):  # fmt: skip
        assert stats.student(probability, freedom) == pytest.approx(printed, abs=6e-5)
    assert stats.student(0.975, 1e7) == pytest.approx(1.959964, abs=1e-5)
    assert stats.student(0.9, 2.5) < stats.student(0.9, 2)


def test_numbers_of_other_samples_cannot_be_paired() -> None:
    first, second = (stats.Sampled(1.0, np.zeros(n), n) for n in (5, 6))
    with pytest.raises(ValueError, match="cannot be paired"):
        _ = first - second


def test_interval_drops_draws_that_do_not_exist() -> None:
    draws = np.array([np.nan, *np.linspace(0, 100, 101), np.nan, -np.inf])
    assert stats.interval(draws) == Interval(2.5, 97.5)
    assert stats.interval(np.array([np.nan])) is None


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    """Both sites share how hard each image is; that would count twice if they were taken for independent."""
    counts = _counts(np.random.default_rng(6), sites=2, images=100, classes=4)
    counts[1] = counts[0]
    counts[1, :, :, 0] = np.maximum(counts[1, :, :, 0] - 1, 0)
    first, second = stats.sampled(stats.miou, counts, stats.Units.among(100))
    assert (second - first).error < 0.25 * math.hypot(first.error, second.error)


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


def test_no_interval_of_a_share_reaches_beyond_what_a_share_can_be_and_differences_may() -> None:
    counts = np.array([[[[0, 9, 1], [1, 1, 9]], [[9, 9, 12], [1, 4, 1]], [[9, 9, 9], [9, 9, 9]]]])
    (level,) = stats.sampled(stats.miou, counts, stats.Units.among(3))
    nothing = stats.Sampled(0.0, 0 * level.again, 3)
    ends = [(one.low, one.high) for sampled in (level, nothing - level) if (one := _interval(sampled))]
    assert ends[0] == (0, 100)
    assert ends[1][0] < -100
    assert ends[1][1] > 0


def _interval(sampled: stats.Sampled) -> Interval | None:
    estimate = sampled.estimate()
    return estimate.interval if estimate else None
