"""The routes of ``/v1``, for images and plain numbers."""
