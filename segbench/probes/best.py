"""What is kept of a training: for every probe the epoch that did best."""

import numpy as np
from jaxtyping import Float, Int

from segbench.probes.bank import Arrays


class Best:
    """For every site the epoch with the highest mIoU on the deciding images, its weights and its counts on val."""

    def __init__(self) -> None:
        self.arrays: Arrays = {}  # "epoch" [l], "score" [l], "counts" [l, n, k, 3], "probe.<site>.weight", ...

    def offer(
        self, epoch: int, score: Float[np.ndarray, " l"], counts: Int[np.ndarray, "l n k 3"], probes: Arrays
    ) -> None:
        """Take the sites whose score (mIoU, %) beats that of every earlier epoch."""
        if not self.arrays:
            self.arrays = {"epoch": np.full(len(score), epoch), "score": score, "counts": counts}
            self.arrays |= {f"probe.{name}": array for name, array in probes.items()}
            return
        better = score > self.arrays["score"]
        names = list(dict.fromkeys(name.rpartition(".")[0] for name in probes))  # sites, in the order of the bank
        for key, value in (("epoch", epoch), ("score", score), ("counts", counts)):
            shape = (-1,) + (1,) * (self.arrays[key].ndim - 1)
            self.arrays[key] = np.where(better.reshape(shape), value, self.arrays[key])
        for name, array in probes.items():
            if better[names.index(name.rpartition(".")[0])]:
                self.arrays[f"probe.{name}"] = array

    @property
    def probes(self) -> Arrays:
        """Weights and biases by name, as `ProbeBank.export` gives them."""
        return {name.removeprefix("probe."): a for name, a in self.arrays.items() if name.startswith("probe.")}
