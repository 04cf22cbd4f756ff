"""Numbers of existing streams never change, and names of any length have streams of their own."""

import pytest
import torch

from cosmos_distill.randomness import Noise, constant, generator

FIRST = {
    (0, "train", 5): [756465087, 4166215668, 684219026],
    (2**64 - 1, "held out", 7): [3087228088, 1261496088, 1250260832],
    (3, "eval", 2**40): [3485344879, 812901845, 3226112218],
}


@pytest.mark.parametrize("key", FIRST)
def test_streams_of_data_are_those_of_the_first_version(key: tuple[int, str, int]) -> None:
    assert generator(*key).integers(2**32, size=3).tolist() == FIRST[key]


def test_words_and_training_noise_are_those_of_the_first_version() -> None:
    assert constant("word row").standard_normal(2).tolist() == [-0.18180383277637963, -1.5309498241126547]
    noise = Noise(1, 2, 3, 2)
    expected = torch.tensor([[-0.2991255819797516], [0.13359738886356354]])
    assert torch.equal(noise.normal("student", (1,)), expected)
    assert noise.integer_of_step("student_steps", 0, 1000) == 580


def test_names_that_begin_alike_have_streams_of_their_own() -> None:
    names = ("validati", "validation", "validation of a teacher", "validation of a student", "out_of_domain")
    drawn = {generator(0, name, 0).integers(2**63) for name in names}
    assert len(drawn) == len(names)
