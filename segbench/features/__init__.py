"""What the probes read: features of images at the sites of a model, and where they live while probes are trained."""

from segbench.features.memory import MicroBatch
from segbench.features.policy import Plan, Policy, choose
from segbench.features.source import AtModel, FeatureSource, Held, Indices, Streamed, checked
from segbench.features.speeds import room
from segbench.features.sweep import Stage
from segbench.features.work import Work

__all__ = [
    "AtModel",
    "FeatureSource",
    "Held",
    "Indices",
    "MicroBatch",
    "Plan",
    "Policy",
    "Stage",
    "Streamed",
    "Work",
    "checked",
    "choose",
    "room",
]
