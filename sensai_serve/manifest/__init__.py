"""``manifest.json``, the description of a bundle: its parts, each of which is parsed strictly."""

from sensai_serve.manifest.manifest import SCHEMA, Manifest
from sensai_serve.manifest.merge_spec import MergeSpec
from sensai_serve.manifest.subnet_spec import SubnetSpec

__all__ = ["SCHEMA", "Manifest", "MergeSpec", "SubnetSpec"]
