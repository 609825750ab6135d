"""How often is a model called better or worse than one that is as good, and how often is a real difference found?

    python benchmarks/null_comparison.py [REPLICATES]

Draws images, models and probe seeds again and again, lets `segbench compare` judge, and prints Markdown. Beside its
rule stand two that it does not follow: intervals over images alone without a margin, and unpaired ones.
"""

import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segbench import stats
from segbench.leaderboard.compare import MARGIN, difference
from segbench.stats import Sampled, Units


@dataclass(frozen=True)
class Population:
    """Images whose classes are as unequal as those of a data set."""

    name: str
    images: int
    classes: int
    per_image: float  # classes in an image, on average


@dataclass(frozen=True)
class Setting:
    """What is compared: a model with itself or with another, which is better by `real` points of mIoU."""

    other: bool
    real: float
    seeds: int
    noise: float  # standard deviation of mIoU over probe seeds, points


@dataclass
class Tally:
    """How often which verdict was given, in this many replicates."""

    replicates: int = 0
    better: int = 0
    worse: int = 0
    same: int = 0
    naive: int = 0  # better or worse by intervals over images alone, without a margin
    unpaired: int = 0  # better or worse by the two models' own standard errors, and the margin


POPULATIONS = (
    Population("like ADE20K val", 2000, 150, 8.5),
    Population("like VOC val", 1449, 21, 2.5),
    Population("small", 240, 20, 5.0),
)
SETTINGS = tuple(
    Setting(other, real, seeds, noise)
    for other, real in ((False, 0.0), (True, 0.0), (True, 1.0), (True, 2.0))
    for seeds in (1, 3, 5)
    for noise in (0.05, 0.2, 0.5, 1.0)
)


def simulate(
    population: Population, settings: Sequence[Setting], replicates: int, seed: int = 0
) -> dict[Setting, Tally]:
    """Verdicts of every setting; images, models and seeds are new in each replicate and shared by the settings."""
    tallies = {setting: Tally() for setting in settings}
    random = np.random.Generator(np.random.PCG64(seed))
    units = Units.among(population.images)
    most = max(setting.seeds for setting in settings)
    for _ in range(replicates):
        truth, right = _images(population, random)
        own = right + random.normal(0, 0.1, (2, *right.shape))  # of each model, whatever its probes' seed
        ours = [_probe(truth, own[0], units, random) for _ in range(most)]
        theirs = {bool(other): [_probe(truth, own[other], units, random) for _ in range(most)] for other in (0, 1)}
        luck = random.normal(0, 1, (2, most))
        for setting in settings:
            # Another training of the probes moves the whole curve, beside the images that it gets wrong.
            moves = setting.noise * luck[:, : setting.seeds]
            first = [_moved(one, setting.real + move) for one, move in zip(ours, moves[0], strict=False)]
            rest = [_moved(one, move) for one, move in zip(theirs[setting.other], moves[1], strict=False)]
            _judge(tallies[setting], first, rest)
    return tallies


def _images(population: Population, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each class in each image, and the share of them that is read right; [n, k] both."""
    n, k = population.images, population.classes
    rank = 1 / np.arange(1, k + 1)
    present = random.random((n, k)) < np.minimum(rank / rank.sum() * population.per_image, 0.95)
    truth = present * np.minimum(random.lognormal(8, 1.3, (n, k)), 1e6)
    skill = 0.3 + 0.5 * np.random.Generator(np.random.PCG64(7)).random(k)  # of the population, not of the sample
    return truth.astype(np.int64), skill + random.normal(0, 0.25, (n, k)) + random.normal(0, 0.1, (n, 1))


def _probe(truth: np.ndarray, right: np.ndarray, units: Units, random: np.random.Generator) -> Sampled:
    """mIoU of one trained probe: it errs a little elsewhere than the same probe trained with another seed."""
    hit = np.round(truth * np.clip(right + random.normal(0, 0.05, right.shape), 0.02, 0.98)).astype(np.int64)
    counts = np.stack([hit, truth, hit + np.roll(truth - hit, 1, 1)], -1)
    return stats.sampled(stats.miou, counts[None], units)[0]


def _moved(one: Sampled, points: float) -> Sampled:
    return Sampled(one.value + points, one.again + points, one.units)


def _judge(tally: Tally, ours: Sequence[Sampled], theirs: Sequence[Sampled]) -> None:
    found = difference(ours, theirs)
    verdict = found.verdict(MARGIN)
    tally.replicates += 1
    tally.better += verdict == "better"
    tally.worse += verdict == "worse"
    tally.same += verdict == "same"
    gap, errors = ours[0].value - theirs[0].value, (ours[0].error or 0.0, theirs[0].error or 0.0)
    tally.naive += bool(abs(gap) > 1.96 * ((ours[0] - theirs[0]).error or 0.0))
    tally.unpaired += bool(abs(gap) > max(MARGIN, 1.96 * math.hypot(*errors)))


def main(replicates: int) -> None:
    """Print one table per population."""
    print(
        f"What is called better, worse and same, and what two other rules call better or worse, in % of {replicates} "
        f"replicates; margin {MARGIN:g} points. The standard error of 5 % in 1000 is 0.7.\n\n"
        f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, one thread; seed 0.\n"
    )
    head = "| models | truly | seeds | SD over seeds | better | worse | same | images alone, no margin | unpaired |"
    for population in POPULATIONS:
        begun = time.monotonic()
        found = simulate(population, SETTINGS, replicates)
        print(f"### {population.name}: {population.images} images, {population.classes} classes\n\n{head}")
        print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
        for setting, tally in found.items():
            shares = (tally.better, tally.worse, tally.same, tally.naive, tally.unpaired)
            cells = " | ".join(f"{100 * share / tally.replicates:.1f}" for share in shares)
            which = "two" if setting.other else "one twice"
            print(f"| {which} | {setting.real:+g} | {setting.seeds} | {setting.noise:g} | {cells} |")
        print(f"\n{time.monotonic() - begun:.0f} s\n", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
