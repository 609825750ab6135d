"""What the files of models/ and tasks/ may say.

A spec is data: a pydantic model that forbids unknown keys, read from strict YAML. Every message names file, line and
key, and all that is wrong with a file is told at once.
"""

from segbench.specs.base import Spec
from segbench.specs.data import DataSpec, Split
from segbench.specs.mistakes import bound, together, validate
from segbench.specs.model import ModelSpec, read_model
from segbench.specs.task import MUTE, TaskHead, TaskSpec, read_task

__all__ = [
    "MUTE",
    "DataSpec",
    "ModelSpec",
    "Spec",
    "Split",
    "TaskHead",
    "TaskSpec",
    "bound",
    "read_model",
    "read_task",
    "together",
    "validate",
]
