"""What is left of a confusion: n wrong patches of n0, over many pairs of an image and a confused class (paper C.1).

Three summaries, in %. The mean of the ratios n / n0 is the paper's; it is heavy-tailed where n0 is small, for n may
exceed n0. The ratio of sums lets pairs with many wrong patches weigh more; the median is moved by no single pair.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int

from segbench import stats
from segbench.stats import Sampled, Units

Metric = Literal["persistence", "persistence_of_sums", "persistence_median"]
METRICS: tuple[Metric, ...] = get_args(Metric)

Curves = Mapping[str, Mapping[str, Sampled]]  # condition -> site -> %


def curves(
    metric: Metric,
    patches: Mapping[str, Int[np.ndarray, "m *rest"]],
    conditions: Sequence[str],
    sites: Sequence[str],
    clusters: Sequence[str] | None,
) -> Curves:
    """One summary of the `patches` of a knockout cell: `n` [m, conditions, sites] and `n0`, `image` [m], a row a pair.

    Rows of one image, or of the images of one cluster, belong together; images without a row are no part of it.
    """
    n, n0 = patches["n"].reshape(len(patches["n"]), -1), patches["n0"][:, None]
    images, image = np.unique(patches["image"], return_inverse=True)
    everything = len(clusters) if clusters is not None else int(images.max(initial=-1)) + 1
    units = Units.among(everything, clusters).taking(images)
    if metric == "persistence":
        ratios, pairs = stats.per_image(n / n0, image), stats.per_image(np.ones(n.shape), image)
        columns = stats.sampled_ratio(ratios, pairs, units)
    elif metric == "persistence_of_sums":
        starts = np.broadcast_to(n0, n.shape)
        columns = stats.sampled_ratio(stats.per_image(n, image), stats.per_image(starts, image), units)
    else:
        columns = stats.sampled_median(100 * n / n0, image, units)
    return {
        condition: dict(zip(sites, columns[row * len(sites) : (row + 1) * len(sites)], strict=True))
        for row, condition in enumerate(conditions)
    }
