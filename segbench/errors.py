"""Errors segbench raises on purpose. Catch `SegbenchError` to catch them all.

* SegbenchError
  x SpecError       a YAML file or an option is wrong; names file, line and key, and what was expected
  x MissingInput    data, weights or an earlier cell are not there; says how to get them
  x DataError       a file of a data set cannot be trusted; names the file and what is wrong with it
  x ModelError      a checkpoint does not fit its adapter, or an attention self-test failed
  x StoreError      a stored file does not match its checksum
  x CellError       a measurement could not be finished (a probe diverged, nothing to count)
  x CellError / PartnerFailed  another process of the same run could not finish it
  x NotComparable   two measurements were not made on the same images in the same way
"""


class SegbenchError(Exception):
    """Base of every error segbench raises on purpose."""


class SpecError(SegbenchError):
    """A YAML file or an option is wrong."""


class MissingInput(SegbenchError):
    """Data, weights or an earlier cell are not there; the message says how to get them."""


class DataError(SegbenchError):
    """A file of a data set cannot be trusted."""


class ModelError(SegbenchError):
    """A checkpoint does not fit its adapter, or an attention self-test failed."""


class StoreError(SegbenchError):
    """A stored file does not match its checksum."""


class CellError(SegbenchError):
    """A measurement could not be finished."""


class PartnerFailed(CellError):
    """Another process of the same run gave the cell up; the message is its own."""


class NotComparable(SegbenchError):
    """Two measurements were not made on the same images in the same way."""


class Stopped(BaseException):
    """A signal asks for a clean stop. No error: nothing but the command line may catch it."""


class Lost(Stopped):
    """Another process of the same run is gone, and this one cannot go on without it; the message says so."""
