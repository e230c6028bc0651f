"""What the networks of a bundle take in memory: as measured when it was made, else estimated from sizes of files."""

from __future__ import annotations

from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError
from sensai_serve.manifest.subnet_memory import SubnetMemory, estimate


def memory_of(bundle: Bundle) -> tuple[SubnetMemory, ...]:
    """What each worker's subnet takes, by worker id; estimated where the manifest does not say.

    Raises:
        BundleError: a file is missing.
    """
    return tuple(subnet.memory or estimated(bundle, subnet.file) for subnet in bundle.manifest.subnets)


def is_measured(bundle: Bundle) -> bool:
    """Whether the manifest says what every subnet takes."""
    return all(subnet.memory is not None for subnet in bundle.manifest.subnets)


def estimated(bundle: Bundle, name: str) -> SubnetMemory:
    """What a network of a bundle takes, from the size of its file and of its inputs.

    Args:
        bundle: the bundle.
        name: path of the ONNX file inside it.

    Raises:
        BundleError: the file is missing.
    """
    try:
        size = (bundle.path / name).stat().st_size
    except OSError as error:
        raise BundleError(f"{bundle.path}: {name} cannot be read: {error.strerror}") from None
    return estimate(size, sum(spec.bytes for spec in bundle.manifest.inputs))
