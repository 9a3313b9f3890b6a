"""Benchmarks of time and memory: ``python -m benchmarks NAME``."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported; else recordings print
