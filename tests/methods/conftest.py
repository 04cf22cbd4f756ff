"""What the tests of all methods share."""

import pytest

from cosmos_distill.config import EDM
from cosmos_distill.diffusion import EDMSchedule
from tests.methods.fake_network import FakeNetwork, make_batch


@pytest.fixture
def schedule():
    return EDMSchedule(EDM())


@pytest.fixture
def batch():
    return make_batch()


@pytest.fixture
def networks():
    """Fresh copies: every student starts alike, teacher and fake score alike."""
    return lambda role: FakeNetwork(seed=1 if role == "student" else 0)
