"""What may be asked of a model from Python: whole numbers of any kind, and nothing that only looks like one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from star_cli.classes import check_class
from star_cli.errors import OptionError
from star_cli.jobs import jobs_of
from star_cli.pipeline import StarPipeline


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"seed": 1.5}, "--seed must be a whole number of at least 0, not 1.5"),
        ({"seed": "7"}, "--seed must be a whole number of at least 0, not '7'"),
        ({"seed": True}, "--seed must be a whole number of at least 0, not True"),
        ({"seed": float("nan")}, "--seed must be a whole number of at least 0, not nan"),
        ({"seed": np.int64(-1)}, "--seed must be a whole number of at least 0, not -1"),
        ({"num": 2.0}, "--num must be a whole number of at least 1, not 2.0"),
        ({"res": 32.0}, "--res must be a whole number of at least 1, not 32.0"),
        ({"res": "32"}, "--res must be a whole number of at least 1, not '32'"),
    ],
)
def test_what_is_no_whole_number_is_refused(tiny_pipeline: StarPipeline, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as refused:
        tiny_pipeline("x", **asked)
    assert str(refused.value) == words


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_a_whole_number_of_another_library_draws_the_same(tiny_pipeline: StarPipeline, kind: Any) -> None:
    (plain,) = tiny_pipeline("x", seed=5, res=64)
    (same,) = tiny_pipeline("x", seed=kind(5), num=kind(1), res=kind(64))
    assert same.encode() == plain.encode()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prompts": None}, "a prompt must be text, not None"),
        ({"prompts": 5}, "a prompt must be text, not 5"),
        ({"prompts": b"x"}, "a prompt must be text, not b'x'"),
        ({"prompts": ["x", 5]}, "a prompt must be text, not 5"),
        ({"prompts": "x", "negative": None}, "a prompt must be text, not None"),
    ],
)
def test_what_is_no_text_is_refused(tiny_pipeline: StarPipeline, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as refused:
        tiny_pipeline(**asked)
    assert str(refused.value) == words


class Model:
    """A model that draws ten classes."""

    name, class_count, default_resolution, schedules = "ten", 10, 32, {}


def test_a_class_is_a_whole_number_of_any_kind() -> None:
    for classes in (3, np.int64(3), [np.int64(3)], np.array([3]), "3"):
        (job,) = jobs_of(Model(), (), classes, "", 0, 1)  # type: ignore[arg-type]
        assert (job.subject, type(job.subject)) == (3, int)
    for wrong in (1.0, True, -1, 10, None):
        with pytest.raises(OptionError, match="--class must be a number from 0 to 9 or a name, not"):
            check_class(wrong, 10)  # type: ignore[arg-type]
