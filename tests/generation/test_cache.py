from __future__ import annotations

import torch

from star_cli.generation.cache import KVCache, make_caches
from star_cli.generation.randomness import random_generators
from star_cli.models.attention import KeysValues


def parts_of(sizes: list[int]) -> list[KeysValues]:
    generator = torch.Generator().manual_seed(0)
    return [KeysValues(*torch.randn(2, 3, 4, size, 8, generator=generator).unbind(0)) for size in sizes]


def test_the_cache_gives_back_all_that_was_put_in_in_order() -> None:
    cache, parts = KVCache(14), parts_of([1, 4, 9])
    for count, part in enumerate(parts, 1):
        held = cache.append(part)
        assert torch.equal(held.keys, torch.cat([one.keys for one in parts[:count]], dim=2))
        assert torch.equal(held.values, torch.cat([one.values for one in parts[:count]], dim=2))


def test_memory_is_taken_once() -> None:
    cache = KVCache(5)
    first, second = (cache.append(part) for part in parts_of([1, 4]))
    assert first.keys.untyped_storage().data_ptr() == second.keys.untyped_storage().data_ptr()
    assert first.values.untyped_storage().data_ptr() == second.values.untyped_storage().data_ptr()


def test_the_last_scale_stands_behind_the_others_and_is_not_kept() -> None:
    parts = parts_of([1, 4, 9])
    first, second = make_caches(2, 5)
    for part in parts[:2]:
        first.append(part)
        second.append(KeysValues(-part.keys, -part.values))
    held = first.append(parts[2])
    assert torch.equal(held.keys, torch.cat([one.keys for one in parts], dim=2))
    assert torch.equal(held.values, torch.cat([one.values for one in parts], dim=2))
    negative = second.append(KeysValues(-parts[2].keys, -parts[2].values))
    assert torch.equal(negative.keys, -torch.cat([one.keys for one in parts], dim=2))
    assert torch.equal(negative.values, -torch.cat([one.values for one in parts], dim=2))
    assert negative.keys.untyped_storage().data_ptr() == held.keys.untyped_storage().data_ptr()
    assert (first.filled, second.filled) == (5, 5)


def test_the_last_scale_after_rows_were_left_behind() -> None:
    parts = parts_of([1, 4])
    (cache,) = make_caches(1, 1)
    cache.append(parts[0])
    cache.keep_rows(1)
    last = KeysValues(parts[1].keys[:1], parts[1].values[:1])
    held = cache.append(last)
    assert torch.equal(held.values, torch.cat([parts[0].values[:1], last.values], dim=2))


def test_a_picture_of_one_scale_keeps_nothing() -> None:
    (cache,) = make_caches(1, 0)
    (part,) = parts_of([4])
    assert torch.equal(cache.append(part).keys, part.keys)
    assert cache.filled == 0


def test_each_block_has_a_cache_of_its_own() -> None:
    first, second = make_caches(2, 4)
    first.append(parts_of([1])[0])
    assert (first.filled, second.filled) == (1, 0)


def test_generators_follow_their_seeds() -> None:
    first, second, again = (torch.rand(4, generator=one) for one in random_generators([1, 2, 1]))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
