"""The server's settings: what can be set, and where each value comes from."""

from serving.settings.settings import Audience, Settings
from serving.settings.sources import Described, describe_settings, load_settings, settings_options

__all__ = ["Audience", "Described", "Settings", "describe_settings", "load_settings", "settings_options"]
