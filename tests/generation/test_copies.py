"""Copies to the CPU: what comes is what was sent, in order, and the next begins before anybody waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from star_cli.generation.copies import Copies, one_behind


class Told:
    """Copies that say when they begin and when somebody waits for them."""

    def __init__(self, said: list[str], number: int, is_on_its_way: bool):
        self.said, self.number, self.is_on_its_way = said, number, is_on_its_way
        said.append(f"begin {number}")

    def wait(self) -> list[Tensor]:
        self.said.append(f"wait {self.number}")
        return [torch.tensor(self.number)]


def follow(way: list[bool]) -> tuple[list[str], list[int]]:
    """What was said, taking included, and what came, of copies that are on their way or there already."""
    said: list[str] = []

    def begin() -> Iterator[Any]:
        for number, is_on_its_way in enumerate(way):
            yield Told(said, number, is_on_its_way)

    came = []
    for (tensor,) in one_behind(begin()):
        said.append(f"take {int(tensor)}")
        came.append(int(tensor))
    return said, came


def test_next_begins_before_one_waits() -> None:
    said, came = follow([True, True, True])
    assert came == [0, 1, 2]
    assert said == [
        *("begin 0", "begin 1", "wait 0", "take 0"),
        *("begin 2", "wait 1", "take 1", "wait 2", "take 2"),
    ]


def test_what_is_there_is_not_held_back() -> None:
    said, _ = follow([False, False])
    assert said == ["begin 0", "wait 0", "take 0", "begin 1", "wait 1", "take 1"]


@pytest.mark.parametrize("way", [[], [True], [True, False], [False, True], [True, False, True, True, False]])
def test_all_come_once_in_order(way: list[bool]) -> None:
    _, came = follow(way)
    assert came == list(range(len(way)))


@pytest.mark.parametrize("is_on_its_way", [True, False])
def test_failure_comes_after_what_was_whole(is_on_its_way: bool) -> None:
    def begin() -> Iterator[Any]:
        yield Told([], 0, is_on_its_way)
        raise RuntimeError("the second one")

    results = one_behind(begin())
    assert next(results) == [torch.tensor(0)]
    with pytest.raises(RuntimeError, match="the second one"):
        next(results)


def test_tensors_of_the_cpu_are_there_without_a_copy() -> None:
    tensor = torch.arange(6).view(2, 3)
    copies = Copies([tensor])
    assert not copies.is_on_its_way
    assert copies.wait()[0].data_ptr() == tensor.data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_of_a_gpu_arrive_as_they_were_sent() -> None:
    sent = [torch.arange(10**6, device="cuda").view(1000, 1000).T, torch.tensor(3.5, device="cuda")]
    copies = Copies(sent)
    assert copies.is_on_its_way
    for found, tensor in zip(copies.wait(), sent, strict=True):
        assert found.device.type == "cpu"
        assert torch.equal(found, tensor.cpu())
