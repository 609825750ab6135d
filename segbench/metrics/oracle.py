"""What a perfect probe of perfect patches would score: the ceiling that the patch grid sets, of a model and a data set.

Features are the true area fractions of the classes in every patch; they are up-sampled and decided like logits. A
geometry that is wrong by more than a fraction of a patch lowers the ceiling by tens of points, so it is also a test.
"""

import numpy as np
from jaxtyping import Float, Int64, UInt8

from segbench.geometry import area_fractions, seen_truth, upsampling
from segbench.metrics import confusion
from segbench.types import GridMap


def counts(mask: UInt8[np.ndarray, "H W"], grid_map: GridMap, classes: int) -> Int64[np.ndarray, "k 3"]:
    """(hit, truth, predicted) pixels of the oracle in one image; what the model did not see is out of it."""
    prediction = predict(area_fractions(mask, grid_map, classes), grid_map)
    return confusion.counts(prediction, seen_truth(mask, grid_map), classes)


def predict(fractions: Float[np.ndarray, "t k"], grid_map: GridMap) -> UInt8[np.ndarray, "H W"]:
    """Class of the highest up-sampled fraction at every original pixel; the smallest id wins a tie."""
    rows, columns = upsampling(grid_map, 0), upsampling(grid_map, 1)
    best, winner = np.zeros(grid_map.image), np.zeros(grid_map.image, np.uint8)
    for label in np.flatnonzero((fractions > 0).any(0)):
        pixels = rows @ fractions[:, label].reshape(grid_map.grid) @ columns.T
        winner[pixels > best] = label
        best = np.maximum(best, pixels)
    return winner
