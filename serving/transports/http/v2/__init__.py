"""The routes of ``/v2``, the Open Inference Protocol."""
