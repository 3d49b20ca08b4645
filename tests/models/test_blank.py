"""Networks without memory: outlines that files fill, whatever the config."""

import torch
from open_clip.transformer import TextTransformer
from torch import nn

from star_cli.models.blank import blank


def test_nothing_takes_memory_and_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    with blank():
        linear, table, offset = nn.Linear(3, 2), nn.Embedding(5, 2), nn.Parameter(torch.randn(6, 2) / 2)
        tower = TextTransformer(context_length=4, vocab_size=8, width=8, heads=2, layers=1, output_dim=4)
    assert all(tensor.is_meta for part in (linear, table, tower) for tensor in part.state_dict().values())
    assert offset.is_meta
    assert offset.shape == (6, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_tensors_are_ordinary_again_afterwards() -> None:
    with blank():
        pass
    assert not nn.Embedding(5, 2).weight.eq(0).any()
