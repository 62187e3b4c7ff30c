"""What can be wrong with a bench or with the folder of a run."""

from __future__ import annotations

from keepsight.errors import InputError, KeepsightError


class NotARun(InputError):
    """A folder holds no run, or something else stands where one should begin."""


class DamagedRun(InputError):
    """A file of a run is not in the documented form; the message names file and line."""


class RunMismatch(InputError):
    """A run cannot be resumed with these settings; the message names what differs."""


class RunInUse(KeepsightError, RuntimeError):
    """Another process is writing into this run."""


class BadBench(InputError):
    """A bench cannot be built from what was given."""


class WorldMismatch(InputError):
    """Another number of processes was started than was asked for."""


class EverythingFails(KeepsightError, RuntimeError):
    """One answer after another failed; the run was stopped rather than filled with failures."""


class CannotRecord(InputError):
    """The folder of a run cannot be written."""
