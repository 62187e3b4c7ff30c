"""The errors that are raised about a benchmark and about the folder of a run."""

from __future__ import annotations

from keepsight.errors import InputError, KeepsightError


class NotARun(InputError):
    """A folder holds no run, or holds other files where a run should begin."""


class DamagedRun(InputError):
    """A file of a run does not have the documented form; the message names file and line."""


class RunMismatch(InputError):
    """A run cannot be resumed with these settings; the message names the settings that differ."""


class RunInUse(KeepsightError, RuntimeError):
    """Another process is writing into the folder of this run."""


class BadBenchmark(InputError):
    """A benchmark cannot be built from the files and options that were given."""


class ProcessCountMismatch(InputError):
    """The launcher started a different number of processes than was asked for."""


class EverythingFails(KeepsightError, RuntimeError):
    """One answer after another failed, so that the run was stopped rather than filled with failures."""


class CannotRecord(InputError):
    """The folder of a run cannot be written."""
