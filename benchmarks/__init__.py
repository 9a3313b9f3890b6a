"""Time and memory: a file a question, all asked by ``python -m benchmarks QUESTION``."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read at the first import of torch; else two lines a recording
