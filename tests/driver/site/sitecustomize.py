"""Puts the driver without a GPU under every Python process that has this folder on its path; see tests/test_run_gpu.py."""

from driver import plugin

__all__ = ["plugin"]
