from __future__ import annotations

from itertools import product

import pytest

from slideloom.encoders.base import spread
from slideloom.encoders.fused import joint_levels, numbered_levels
from slideloom.errors import SlideloomError


@pytest.mark.parametrize("counts", [*product(range(1, 5), repeat=2), *product(range(1, 5), repeat=3)])
def test_levels_give_every_encoder_the_inputs_that_it_has_alone(counts: tuple[int, ...]) -> None:
    blocks = [tuple(range(10 * number + 1, 10 * number + count + 1)) for number, count in enumerate(counts)]
    levels = joint_levels(blocks)
    assert len(levels) == len(set(levels)) == max(counts)
    inputs = [levels[index] for index in spread(len(levels))]
    for number, own in enumerate(blocks):
        assert [level[number] for level in inputs] == [own[index] for index in spread(len(own))]
    assert levels[-1] == tuple(own[-1] for own in blocks), "the last is the deepest of all"


def test_one_encoder_keeps_the_numbers_of_its_blocks() -> None:
    assert numbered_levels([(3, 6, 9)]) == {3: (3,), 6: (6,), 9: (9,)}
    assert numbered_levels([(3, 6), (1,)]) == {1: (3, 1), 2: (6, 1)}


@pytest.mark.parametrize("count", [0, 5])
def test_more_blocks_than_a_decoder_takes_are_refused(count: int) -> None:
    with pytest.raises(SlideloomError) as caught:
        joint_levels([(1,), tuple(range(count))])
    assert caught.value.code == "decoder_blocks"
