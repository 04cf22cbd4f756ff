from __future__ import annotations

import os

import pytest

from tests.ops.triton import interpreter_bf16

if os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("these tests need the interpreter: set TRITON_INTERPRET=1")
interpreter_bf16.install()
