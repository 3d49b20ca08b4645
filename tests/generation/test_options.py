from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from star_cli.errors import OptionError
from star_cli.generation.options import SamplingOptions


def test_defaults_are_the_published_settings() -> None:
    drawing = {"guidance": 4.0, "top_k": 600, "top_p": 0.8, "temperature": 1.0}
    assert SamplingOptions().to_dict() == {**drawing, "smooth": 0, "stable": None, "compat": "none", "speed": "exact"}


def test_options_come_back_from_json() -> None:
    options = SamplingOptions(guidance=0, top_k=1, top_p=1, temperature=0)
    assert SamplingOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("guidance", math.nan, "--guidance must be a number from 0 to 1000, not nan"),
        ("guidance", math.inf, "--guidance must be a number from 0 to 1000, not inf"),
        ("guidance", -1, "--guidance must be a number from 0 to 1000, not -1"),
        ("guidance", 1e39, "--guidance must be a number from 0 to 1000, not 1e+39"),
        ("top_k", 0, "--top-k must be a whole number of at least 1, not 0"),
        ("top_k", -3, "--top-k must be a whole number of at least 1, not -3"),
        ("top_p", 0, "--top-p must be a number above 0 and at most 1, not 0"),
        ("top_p", 1.5, "--top-p must be a number above 0 and at most 1, not 1.5"),
        ("top_p", math.nan, "--top-p must be a number above 0 and at most 1, not nan"),
        ("temperature", -0.1, "--temperature must be 0, or a number of at least 0.0001, not -0.1"),
        ("temperature", 1e-38, "--temperature must be 0, or a number of at least 0.0001, not 1e-38"),
        ("temperature", math.nan, "--temperature must be 0, or a number of at least 0.0001, not nan"),
        ("temperature", math.inf, "--temperature must be 0, or a number of at least 0.0001, not inf"),
        ("top_k", 2.5, "--top-k must be a whole number of at least 1, not 2.5"),
        ("top_k", True, "--top-k must be a whole number of at least 1, not True"),
        ("smooth", 1.0, "--smooth must be a whole number of at least 0, not 1.0"),
        ("guidance", "4", "--guidance must be a number from 0 to 1000, not 4"),
        ("guidance", None, "--guidance must be a number from 0 to 1000, not None"),
        ("top_p", True, "--top-p must be a number above 0 and at most 1, not True"),
        ("stable", "no", "stable must be true, false or left out, not 'no'"),
    ],
)
def test_values_out_of_range_are_refused(option: str, value: Any, sentence: str) -> None:
    with pytest.raises(OptionError) as refused:
        SamplingOptions(**{option: value})
    assert str(refused.value) == sentence


def test_unknown_option_is_named() -> None:
    with pytest.raises(OptionError, match="SamplingOptions has no field cfg"):
        SamplingOptions.from_dict({"cfg": 4})


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
def test_numbers_of_another_library_become_plain_ones(kind: Any) -> None:
    whole = torch.tensor if kind is torch.tensor else np.int64
    options = SamplingOptions(guidance=kind(2.5), top_k=whole(7), smooth=whole(1), stable=False)
    assert options == SamplingOptions(guidance=2.5, top_k=7, smooth=1, stable=False)
    assert json.loads(json.dumps(options.to_dict()))["top_k"] == 7
