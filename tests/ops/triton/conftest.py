"""Whether Triton's kernels are interpreted is settled when they are defined, for a whole process: the tests
in ``interpreted`` are collected only under TRITON_INTERPRET=1, and test_interpreter.py starts them so.

    TRITON_INTERPRET=1 python -m pytest tests/ops/triton/interpreted
"""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
