"""How often does a 95 % interval of segbench hold the truth, and how often would other ones?

    python benchmarks/coverage.py [REPLICATES]

Draws data sets like ADE20K, VOC and Cityscapes val again and again from processes whose truth is known, and prints
Markdown. The truth of a number is its population value: what a very large sample of the same process gives. Beside the
interval of `segbench.stats` (leave one unit out) stand the percentiles of a paired bootstrap over the same units, and a
mistake: two numbers taken for independent, per-image scores averaged, or images of one city taken for independent.
"""

import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from segbench import stats
from segbench.metrics import persistence
from segbench.stats import Sampled, Units
from segbench.types import Interval

LARGE, BLOCK = 400_000, 4_000  # images that the truth is taken from, and how many are drawn at once
DRAWS = 400  # of the bootstrap: its coverage with 1000 is no other
PATCHES = 576
RISING = (0.0, -0.05, 0.02, 0.04, 0.045, 0.0455, 0.045)  # skill at encoder, adapter and layers; three near-equal
EQUAL = (0.0, -0.05, *[0.04] * 12)


@dataclass(frozen=True)
class Population:
    """A process that draws labelled images and what probes at several sites make of them."""

    name: str
    images: int
    classes: int
    present: float  # classes in an image, on average
    evenness: float = 1.0  # the r-th class is in images in proportion to r ** -evenness
    cities: tuple[int, ...] = ()  # images of each; none: every image is on its own
    skills: tuple[float, ...] = RISING
    alike: float = 0.8  # correlation of one site's errors with the next one's

    def draw(self, random: np.random.Generator, cities: Sequence[int] | None = None) -> tuple[np.ndarray, list[str]]:
        """Counts [l, n, k, 3] of hit, truth and predicted pixels, and the city of each image."""
        city = np.repeat(np.arange(len(cities or self.cities)), cities or self.cities)
        n, k = len(city) or self.images, self.classes
        fixed = np.random.default_rng(1)  # of the population
        share = np.arange(1, k + 1) ** -self.evenness
        share /= share.sum()
        skill = np.clip(fixed.normal(0.55, 0.2, k), 0.08, 0.95)
        own = fixed.normal(0, 0.04, (len(self.skills), k)) * (self.skills != EQUAL)
        often, easy = np.broadcast_to(np.minimum(share * self.present, 0.95), (n, k)), np.zeros((n, k))
        if len(city):  # cities differ in what they show and in how hard they are, in all and for each class
            count = city[-1] + 1
            often = np.minimum(often * np.exp(random.normal(0, 0.3, (count, k)))[city], 0.97)
            easy = (random.normal(0, 0.05, (count, 1)) + random.normal(0, 0.05, (count, k)))[city]

        there = random.random((n, k)) < often
        there[np.arange(n), random.choice(k, n, p=share)] = True
        image, truth = np.nonzero(there)  # one row for each class of each image
        area = random.lognormal(0, 1.2, len(image))
        area = np.maximum(1, np.round(area / np.bincount(image, area)[image] * 50_000))
        wrong = self._taken_for(random, image, truth, share)
        base = skill[truth] + easy[image, truth] + random.normal(0, 0.08, n)[image] + random.normal(0, 0.25, len(image))
        labelled = np.bincount(image * k + truth, area, n * k)
        error, counts = random.normal(0, 1, len(image)), np.zeros((len(self.skills), n, k, 3), np.int32)
        for site, shift in enumerate(self.skills):
            error = self.alike * error + math.sqrt(1 - self.alike**2) * random.normal(0, 1, len(image))
            right = np.clip(base + shift + own[site, truth] + 0.12 * error, 0, 1)
            hit = np.minimum(np.floor(area * right + random.random(len(image))), area)
            hits = np.bincount(image * k + truth, hit, n * k)
            predicted = hits + np.bincount(image * k + wrong, area - hit, n * k)
            counts[site] = np.stack([hits, labelled, predicted], -1).reshape(n, k, 3)
        return counts, [str(one) for one in city]

    def _taken_for(
        self, random: np.random.Generator, image: np.ndarray, truth: np.ndarray, share: np.ndarray
    ) -> np.ndarray:
        """The class that wrong pixels are taken for: the one that looks alike, another of the image, or any."""
        twin, first = (truth ^ 1) % self.classes, np.searchsorted(image, image)
        beside = truth[first + (random.random(len(image)) * np.bincount(image)[image]).astype(int)]
        any_class = random.choice(self.classes, len(image), p=share)
        wrong = np.where((beside == truth) | (random.random(len(image)) < 0.15), any_class, beside)
        return np.where((wrong == truth) | (random.random(len(image)) < 0.4), twin, wrong)

    def truth(self, images: int) -> Mapping[str, float]:
        """The population value of every number, as so many images tell it."""
        random, total = np.random.default_rng(2), np.zeros(())
        many = [BLOCK // 100] * 100 if self.cities else None
        large = Population(**{**vars(self), "images": BLOCK})
        for _ in range(images // BLOCK):
            total = total + large.draw(random, many)[0].sum(1, dtype=np.float64)
        none = [Sampled(float(value), np.zeros(0), 0) for value in stats.miou(total)]
        return {name: one.value for name, one in segmentation(none).items()}


@dataclass
class Tally:
    """What happened to one number in all replicates."""

    truth: float
    values: list[float] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)  # half of ours
    held: dict[str, list[bool]] = field(default_factory=dict)  # by each kind of interval

    def add(self, ours: Sampled, drawn: np.ndarray, mistaken: tuple[float, float] | None) -> None:
        """One replicate; a mistaken interval is given by its middle and its standard error."""
        low, high = _ends(estimate.interval if (estimate := ours.estimate()) else None)
        self.values.append(ours.value)
        self.widths.append((high - low) / 2)
        intervals = {"segbench": (low, high), "percentiles": _ends(stats.interval(drawn))}
        if mistaken:
            middle, error = mistaken
            intervals["mistaken"] = middle - 1.96 * error, middle + 1.96 * error
        for name, (low, high) in intervals.items():
            self.held.setdefault(name, []).append(bool(low <= self.truth <= high))

    def coverage(self, name: str) -> float:
        """How often this kind of interval held the truth, in %; nan where there is none of this kind."""
        return 100 * float(np.mean(self.held.get(name, [np.nan])))


def _ends(interval: Interval | None) -> tuple[float, float]:
    """An interval that does not exist holds nothing."""
    return (interval.low, interval.high) if interval else (math.nan, math.nan)


def segmentation(sites: Sequence[Sampled]) -> dict[str, Sampled]:
    """The leaderboard's numbers from those of encoder, adapter and layers."""
    encoder, adapter, *layers = sites
    peak = stats.best(layers)
    return {
        "mIoU at the encoder": encoder,
        "drop": adapter - encoder,
        "peak": peak,
        "recovery": peak - adapter,
    }


def probes(population: Population, replicates: int, large: int = LARGE) -> dict[str, Tally]:
    """mIoU and its differences.

    Mistaken: the images of a city are taken for independent; the mean over images of per-image mIoU; differences are
    taken of numbers that are not paired.
    """
    tallies = {name: Tally(value) for name, value in population.truth(large).items()}
    random = np.random.default_rng(3)
    for _ in range(replicates):
        counts, city = population.draw(random)
        units = Units.among(counts.shape[1], city or None)
        sites = stats.sampled(stats.miou, counts, units)
        columns = stats.miou_draws(counts, units.drawn(DRAWS)).T
        drawn = [Sampled(one.value, column, units.count) for one, column in zip(sites, columns, strict=True)]
        ours, bootstrapped = segmentation(sites), segmentation(drawn)
        if city:
            alone = segmentation(stats.sampled(stats.miou, counts, Units.among(len(city))))
            mistaken = {name: (one.value, one.error or 0) for name, one in alone.items()}
        else:
            scores = stats.miou(counts[0])
            mistaken = {"mIoU at the encoder": (float(scores.mean()), float(scores.std()) / math.sqrt(len(scores)))}
            for name, pair in {"drop": sites[:2], "recovery": (ours["peak"], sites[1])}.items():
                mistaken[name] = ours[name].value, math.hypot(*(one.error or 0 for one in pair))
        for name, tally in tallies.items():
            tally.add(ours[name], bootstrapped[name].again, mistaken.get(name))
    return tallies


def starvation(images: int, cities: tuple[int, ...], replicates: int) -> dict[str, Tally]:
    """Accuracy of the first three patches, one model minus another. Mistaken: unpaired; a city's images apart."""

    def draw(random: np.random.Generator, city: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = len(city)
        count = np.where(random.random(n) < 0.1, 0, random.integers(200, 3000, n))  # one in ten is not labelled there
        hard = random.normal(0, 0.25, n) + random.normal(0, 0.1, city.max() + 1)[city] * bool(cities)
        shares = [0.75 + hard + random.normal(0, 0.1, n), 0.6 + hard + random.normal(0, 0.15, n)]
        return np.stack([np.round(count * np.clip(one, 0, 1)) for one in shares], 1), np.stack([count, count], 1)

    random, many = np.random.default_rng(4), np.arange(LARGE) // 100
    hit, count = draw(random, many)
    bidirectional, causal = 100 * hit.sum(0) / count.sum(0)
    tally = Tally(float(bidirectional - causal))
    city = np.repeat(np.arange(len(cities)), cities) if cities else np.arange(images)
    units, alone = Units.among(len(city), [str(one) for one in city] if cities else None), Units.among(len(city))
    weights = units.drawn(DRAWS).astype(float)
    for _ in range(replicates):
        hit, count = draw(random, city)
        ours, theirs = stats.sampled_ratio(hit, count, units)
        drawn = 100 * (weights @ hit) / (weights @ count)
        first, second = stats.sampled_ratio(hit, count, alone)
        error = (first - second).error if cities else math.hypot(first.error or 0, second.error or 0)
        tally.add(ours - theirs, drawn[:, 0] - drawn[:, 1], (ours.value - theirs.value, error or 0))
    return {"gap of the first 3 patches": tally}


def knockout(images: int, cities: tuple[int, ...], replicates: int) -> dict[str, Tally]:
    """What is left of confusions, and what a knockout does to that. Mistaken: the pairs of an image are independent."""
    conditions, sites = ("none", "blocked"), ("last",)

    def draw(random: np.random.Generator, city: np.ndarray) -> dict[str, np.ndarray]:
        image = np.repeat(np.arange(len(city)), 1 + random.poisson(0.8, len(city)))  # pairs with a confused class
        m = len(image)
        n0 = np.minimum(8 + np.floor(random.lognormal(2.2, 1.0, m)), PATCHES / 2).astype(int)
        odds = random.normal(0.3, 0.8, len(city))[image] + random.normal(0, 0.8, m)
        odds += random.normal(0, 0.4, city.max() + 1)[city][image] * bool(cities)
        spread = np.where(random.random(m) < 0.15, random.beta(0.5, 10, m), 0)  # new wrong patches, here and there
        left = []
        for shift in (0.0, random.normal(-0.4, 0.4, m)):
            share = 1 / (1 + np.exp(-odds - shift))
            left.append(random.binomial(n0, share) + random.binomial(PATCHES - n0, spread))
        return {"n": np.stack(left, 1)[:, :, None], "n0": n0, "image": image}

    def summaries(patches: Mapping[str, np.ndarray], clusters: Sequence[str] | None) -> Iterator[tuple[str, Sampled]]:
        for metric in persistence.METRICS:
            curves = persistence.curves(metric, patches, conditions, sites, clusters)
            yield NAMES[metric], curves["none"]["last"]
            yield f"{NAMES[metric]}, effect", curves["blocked"]["last"] - curves["none"]["last"]

    random = np.random.default_rng(5)
    large = draw(random, np.arange(LARGE) // 100)
    tallies = {name: Tally(float(one[0])) for name, one in _persistence(large["n"][..., 0], large["n0"], None).items()}
    city = np.repeat(np.arange(len(cities)), cities) if cities else np.arange(images)
    clusters = [str(one) for one in city] if cities else None
    weights = Units.among(len(city), clusters).drawn(DRAWS)
    for _ in range(replicates):
        patches = draw(random, city)
        pairs = {**patches, "image": np.arange(len(patches["image"]))}
        drawn = _persistence(patches["n"][..., 0], patches["n0"], weights[:, patches["image"]])
        mistaken = dict(summaries(pairs, None))
        for name, ours in summaries(patches, clusters):
            tallies[name].add(ours, drawn[name], (ours.value, mistaken[name].error or 0))
    return tallies


NAMES = {
    "persistence": "persistence, mean of ratios",
    "persistence_of_sums": "persistence, ratio of sums",
    "persistence_median": "persistence, median",
}


def _persistence(n: np.ndarray, n0: np.ndarray, weights: np.ndarray | None) -> dict[str, np.ndarray]:
    """The summaries and effects in plain numpy, of all pairs or of every resample of them."""
    ratios = 100 * n / n0[:, None]
    if weights is None:
        found = [ratios.mean(0)[None], 100 * n.sum(0)[None] / n0.sum(), np.median(ratios, 0)[None]]
    else:
        drawn = weights.astype(float)
        mean, sums = drawn @ ratios / drawn.sum(1, keepdims=True), 100 * (drawn @ n) / (drawn @ n0)[:, None]
        found = [mean, sums, np.stack([stats.weighted_median(column, weights) for column in ratios.T], 1)]
    result = {}
    for name, one in zip(NAMES.values(), found, strict=True):
        result |= {name: one[:, 0], f"{name}, effect": one[:, 1] - one[:, 0]}
    return result


CITYSCAPES = (267, 174, 59)
ADE = Population("like ADE20K val", 2000, 150, 8.5)
VOC = Population("like VOC 2012 val", 1449, 21, 2.5)
SMALL = Population("small", 240, 20, 4.0, 0.5)
TABLES: Mapping[str, Callable[[int], Mapping[str, Tally]]] = {
    "Like ADE20K val: 2000 images, 150 classes": partial(probes, ADE),
    "Like VOC 2012 val: 1449 images, 21 classes": partial(probes, VOC),
    "Small: 240 images, 20 classes": partial(probes, SMALL),
    "A pilot of 50 of them": partial(probes, Population("pilot", 50, 20, 4.0, 0.5)),
    "A pilot of 20": partial(probes, Population("pilot", 20, 20, 4.0, 0.5)),
    "Small, twelve equal layers": partial(probes, Population("equal", 240, 20, 4.0, 0.5, skills=EQUAL)),
    "Small, twelve equal layers that err apart": partial(
        probes, Population("apart", 240, 20, 4.0, 0.5, skills=EQUAL, alike=0.0)
    ),
    "Like Cityscapes val: 500 images of 3 cities, 19 classes": partial(
        probes, Population("3", 500, 19, 12.0, cities=CITYSCAPES)
    ),
    "The same of 10 cities": partial(probes, Population("10", 500, 19, 12.0, cities=(50,) * 10)),
    "The same of 30 cities": partial(probes, Population("30", 510, 19, 12.0, cities=(17,) * 30)),
    "Starvation, 2000 images": partial(starvation, 2000, ()),
    "Starvation, 240 images": partial(starvation, 240, ()),
    "Starvation, 500 images of 3 cities": partial(starvation, 0, CITYSCAPES),
    "Knockout, 1000 images with a confusion": partial(knockout, 1000, ()),
    "Knockout, 240 images": partial(knockout, 240, ()),
    "Knockout, 73 images": partial(knockout, 73, ()),
    "Knockout, 20 images": partial(knockout, 20, ()),
    "Knockout, 500 images of 3 cities": partial(knockout, 0, CITYSCAPES),
}


def main(replicates: int) -> None:
    """Print one table per population."""
    print(
        f"Coverage of 95 % intervals in {replicates} replicates (standard error at 95 %: "
        f"{100 * math.sqrt(0.0475 / replicates):.1f} points). Truth, bias, SD and half-width in points.\n\n"
        f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, one thread; seeds 1 to 5.\n"
    )
    for title, measure in TABLES.items():
        begun = time.monotonic()
        found = measure(replicates)
        print(f"### {title}\n\n| number | truth | bias | SD | half-width | segbench | percentiles | mistaken |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        for name, tally in found.items():
            values = np.array(tally.values)
            about = (tally.truth, values.mean() - tally.truth, values.std(), np.median(tally.widths))
            shares = [tally.coverage(kind) for kind in ("segbench", "percentiles", "mistaken")]
            cells = [f"{one:.2f}" for one in about] + ["" if math.isnan(one) else f"{one:.1f}" for one in shares]
            print(f"| {name} | {' | '.join(cells)} |")
        print(f"\n{time.monotonic() - begun:.0f} s\n", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
