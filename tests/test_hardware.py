"""Devices by their names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from star_cli.errors import OptionError
from star_cli.hardware import choose_device


@pytest.mark.parametrize("requested", ["cpu:", "cuda:", "cpu:0", "cuda:x", "cuda:-1", "", ":", None, 5])
def test_what_names_no_device_is_refused(requested: Any) -> None:
    with pytest.raises(OptionError, match="--device must be auto, cuda, mps, cpu, not"):
        choose_device(requested)


def test_one_gpu_of_several_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1")[0] == choose_device("cuda:01")[0] == torch.device("cuda", 1)
    assert choose_device("cuda")[0] == torch.device("cuda")
    with pytest.raises(OptionError, match="torch sees no such device here"):
        choose_device("cuda:2")
