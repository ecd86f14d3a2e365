"""How many pieces gradients are cut into."""

import pytest

from trainer.buckets import bucket_count

MIB = 2**20


@pytest.mark.parametrize(
    ("gradient_bytes", "pieces"),
    [(1, 1), (MIB, 1), (MIB + 1, 2), (7 * MIB, 7), (8 * MIB, 8), (200 * MIB, 8), (200 * MIB + 1, 9), (500 * MIB, 20)],
)
def test_pieces_are_eight_where_they_can_be_and_of_1_to_25_mib(gradient_bytes: int, pieces: int) -> None:
    assert bucket_count(gradient_bytes) == pieces
