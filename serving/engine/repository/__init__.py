"""The models that are served, by name: loaded, replaced and unloaded while requests come in."""

from serving.engine.repository.index import Entry
from serving.engine.repository.repository import Repository

__all__ = ["Entry", "Repository"]
