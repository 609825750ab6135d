"""Linear probes on frozen features: the bank, its training, what is kept of it, and what it counts (paper A.2)."""

from segbench.probes.bank import Arrays, Diverged, ProbeBank
from segbench.probes.best import Best
from segbench.probes.counting import Counted, count, evaluate, label_maps, predictions
from segbench.probes.training import Schedule, Trainer

__all__ = [
    "Arrays",
    "Best",
    "Counted",
    "Diverged",
    "ProbeBank",
    "Schedule",
    "Trainer",
    "count",
    "evaluate",
    "label_maps",
    "predictions",
]
