"""The epoch that is kept."""

import numpy as np
from planted import SITES

from segbench import probes


def test_best_keeps_each_sites_own_epoch():
    best = probes.Best()
    for epoch, score in enumerate(([1.0, 5.0], [2.0, 4.0], [2.0, 5.0])):
        weights = {f"{site}.weight": np.full((3, 2), epoch) for site in SITES}
        best.offer(epoch, np.array(score), np.full((2, 4, 3, 3), epoch), weights)
    assert best.arrays["epoch"].tolist() == [1, 0]
    assert best.arrays["counts"][:, 0, 0, 0].tolist() == [1, 0]
    assert [int(best.probes[f"{site}.weight"][0, 0]) for site in SITES] == [1, 0]
