"""Batches of any make are cut into shares and counted alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from star_cli.errors import DataError, OptionError
from star_cli.training.batches import count_rows, load_batches, shard
from star_cli.training.stage import BatchSource
from tests.training.tiny_stages import Numbers, Pictures


def test_shares_are_every_so_many_rows_of_each_tensor_and_list() -> None:
    batch = Pictures(5).batch(0)
    first, second = shard(batch, 0, 2), shard(batch, 1, 2)
    assert [count_rows(batch), count_rows(first), count_rows(second)] == [5, 3, 2]
    assert torch.equal(first.tokens, batch.tokens[[0, 2, 4]])
    assert torch.equal(second.condition.states, batch.condition.states[[1, 3]])
    assert second.note == batch.note


def test_tuples_and_lists_are_cut_and_scalars_are_not() -> None:
    batch = (torch.arange(4), ["a", "b", "c", "d"], torch.tensor(7.0), 3)
    tokens, words, gain, number = shard(batch, 1, 2)
    assert tokens.tolist() == [1, 3]
    assert words == ["b", "d"]
    assert [gain.item(), number] == [7.0, 3]


def test_a_batch_may_cut_itself() -> None:
    class Own:
        rows = torch.zeros(4)

        def shard(self, rank: int, world: int) -> str:
            return f"{rank} of {world}"

    assert shard([1, 2], 1, 2) == [2]
    with pytest.raises(OptionError, match="batch of 1 cannot be shared by 2"):
        shard(Own(), 1, 2)  # its rows are not to be found


def test_an_empty_share_is_refused() -> None:
    with pytest.raises(OptionError, match="batch of 2 cannot be shared by 3"):
        shard(torch.zeros(2, 2), 0, 3)


def test_the_loader_gives_each_process_its_rows_and_tells_of_the_whole() -> None:
    whole = Numbers().batch(4)[0]
    ((points, _), rows), *others = load_batches(Numbers(), 4, 6, 1, rank=1, world=2)
    assert rows == 16
    assert torch.equal(points, whole[1::2])
    assert len(others) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_arrives_as_it_was(workers: int) -> None:
    class Broken(BatchSource):
        def batch(self, step: int) -> Any:
            raise DataError("the folder is empty", "put pictures into it")

    with pytest.raises(DataError, match=r"^the folder is empty$") as caught:
        next(load_batches(Broken(), 0, 1, workers))
    assert caught.value.hint == "put pictures into it"
