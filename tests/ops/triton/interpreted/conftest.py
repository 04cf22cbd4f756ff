from __future__ import annotations

from tests.ops.triton import interpreter_bf16

interpreter_bf16.install()
