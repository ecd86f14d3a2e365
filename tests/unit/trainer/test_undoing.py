"""Copies that are put back without a wait: of any type and layout, bit for bit, and no more than need be."""

import math

import pytest
import torch

from trainer.undoing import Copies

VALUES = (math.nan, math.inf, -0.0, 0.0, 1e-40, -1.5)
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.uint8)


def tensors() -> list[torch.Tensor]:
    """Of all types, with NaN, infinity and both zeros; not contiguous too; one that is trained."""
    found = [torch.tensor(VALUES if dtype.is_floating_point else range(6)).to(dtype) for dtype in TYPES]
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)
    found += [images.to(memory_format=torch.channels_last), images[:, :, ::2].clone().transpose(1, 2)]
    return [*found, torch.nn.Parameter(torch.tensor(VALUES)), torch.tensor(3)]


def bits(tensor: torch.Tensor) -> list[int]:
    return list(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


@torch.no_grad()
def spoil(live: list[torch.Tensor]) -> None:
    for number, tensor in enumerate(live):
        tensor.fill_(math.nan if tensor.is_floating_point() and number % 2 else 7)


@pytest.mark.parametrize("good", [True, False])
def test_tensors_are_put_back_bit_for_bit_unless_the_step_was_good(good: bool) -> None:
    live = tensors()
    copies = Copies(live)
    for _ in range(2):  # copies are used again
        before = [bits(tensor) for tensor in live]
        copies.keep()
        spoil(live)
        spoilt = [bits(tensor) for tensor in live]
        copies.put_back_unless(torch.tensor(good))
        assert [bits(tensor) for tensor in live] == (spoilt if good else before)
        assert spoilt != before or good


@pytest.mark.parametrize("good", [True, False])
def test_what_a_good_step_leaves_is_untouched_whatever_it_is(good: bool) -> None:
    live = tensors()
    copies = Copies([torch.zeros_like(tensor) for tensor in live])
    copies.keep()
    for tensor, value in zip(copies.tensors, live, strict=True):
        tensor.copy_(value.detach())
    copies.put_back_unless(torch.tensor(good))
    expected = live if good else [torch.zeros_like(tensor) for tensor in live]
    assert [bits(tensor) for tensor in copies.tensors] == [bits(tensor) for tensor in expected]


def test_copies_are_of_these_very_tensors() -> None:
    live = tensors()
    copies = Copies(live)
    assert copies.are_of(list(live))
    assert not copies.are_of(live[:-1])
    assert not copies.are_of([*live[:-1], live[-1].clone()])
