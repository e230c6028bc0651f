"""Every error that sensai-serve raises on purpose.

    SensaiError
    ├── InputError              what was given is wrong: a file, an option, a request
    │   ├── AssignmentError     classes, groups, offsets or redundancy that make no code
    │   ├── BundleError         a bundle that is missing, damaged or says something impossible
    │   │   └── ChecksumError   a file of the bundle is not the file that was written
    │   ├── DataError           a data source that is missing, damaged or empty
    │   ├── ModelError          a network or weights that cannot be built, loaded or cut
    │   ├── PluginError         a name that no plugin answers to
    │   ├── DeviceError         a device that this machine does not have
    │   ├── OutputExistsError   a place to write to that holds something already
    │   └── RequestError        a prediction request that does not fit the model
    │       ├── ImageError          bytes that are no readable image
    │       ├── TooLargeError       more bytes, elements or pixels than the limit
    │       ├── UnknownModelError   no model of that name is served here
    │       ├── UnknownRegionError  no shared memory of that name is registered
    │       ├── UnauthenticatedError    a token that is missing or not known
    │       ├── ForbiddenError      a token without the role that the request needs
    │       └── UnsupportedError    a part of the protocol that this server does not do
    ├── WorkError               offline work that could not be finished: memory, the disk, a process, a training
    └── ServingError            the request was fine and could not be answered
        ├── UncoveredError      a class has no copy left, and the operator said to refuse then
        ├── OverloadedError     too many requests are in flight
        ├── NotReadyError       the model is not (or no longer) ready
        │   └── NotLoadedError  it is not in memory yet, and will be
        ├── ControlOffError     models are not loaded and unloaded by request here
        └── WorkerError         a worker failed

A message is one line: what was wrong, then what was expected. The tree knows nothing of exit codes or HTTP:
the command line and the transports map it (``InputError`` is exit code 2 and a 4xx).
"""

from __future__ import annotations


class SensaiError(Exception):
    """Base of every error raised on purpose."""


class InputError(SensaiError):
    """What was given is wrong."""


class AssignmentError(InputError):
    """Classes, groups, offsets or redundancy that make no code."""


class BundleError(InputError):
    """A bundle that is missing, damaged or says something impossible."""


class ChecksumError(BundleError):
    """A file of the bundle is not the file that was written."""


class DataError(InputError):
    """A data source that is missing, damaged or empty."""


class ModelError(InputError):
    """A network or weights that cannot be built, loaded or cut."""


class PluginError(InputError):
    """A name that no plugin answers to."""


class DeviceError(InputError):
    """A device that this machine does not have."""


class OutputExistsError(InputError):
    """A place to write to that holds something already."""


class RequestError(InputError):
    """A prediction request that does not fit the model."""


class ImageError(RequestError):
    """Bytes that are no readable image."""


class TooLargeError(RequestError):
    """More bytes, elements or pixels than the limit."""


class UnknownModelError(RequestError):
    """No model of that name is served here."""


class UnknownRegionError(RequestError):
    """No shared memory of that name is registered."""


class UnauthenticatedError(RequestError):
    """A token that is missing or not known."""


class ForbiddenError(RequestError):
    """A token without the role that the request needs, or a listener that does not answer such requests."""


class UnsupportedError(RequestError):
    """A part of the protocol that this server does not do."""


class WorkError(SensaiError):
    """Offline work that could not be finished: memory or the disk is full, a process died, a training diverged."""


class ServingError(SensaiError):
    """The request was fine and could not be answered."""


class UncoveredError(ServingError):
    """A class has no copy left, and the operator said to refuse then."""


class OverloadedError(ServingError):
    """Too many requests are in flight."""


class NotReadyError(ServingError):
    """The model is not, or no longer, ready."""


class NotLoadedError(NotReadyError):
    """The model is served and not in memory yet; the request may be sent again."""


class ControlOffError(ServingError):
    """Models are not loaded and unloaded by request here."""


class WorkerError(ServingError):
    """A worker failed."""


def first_line(error: BaseException) -> str:
    """First line of the message of an error that others raised, at most 300 characters; its type if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
