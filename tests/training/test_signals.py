"""Being asked to stop: the step under way is finished and saved, then the signal takes its course."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from star_cli.errors import TrainingError
from star_cli.training.checkpoint import list_checkpoints
from star_cli.training.loop import train_stage
from star_cli.training.signals import stop_on_signal
from tests.training.tiny_stages import LOOP, Line, equal


class TerminatedForTestError(BaseException):
    pass


@pytest.fixture(autouse=True)
def _sigterm_unwinds() -> Iterator[None]:
    """As the command line has it."""

    def stop(number: int, frame: object) -> None:
        raise TerminatedForTestError

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


def sends(number: int, at: int) -> Line:
    return Line(lambda step: os.kill(os.getpid(), number) if step == at else None)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, TerminatedForTestError), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_finishes_the_step_saves_and_takes_its_course(
    tmp_path: Path, number: int, raised: type[BaseException]
) -> None:
    loop = replace(LOOP, save_every=100)
    whole, resumed = Line(), Line()
    train_stage(whole, loop, tmp_path / "whole")
    with pytest.raises(raised):
        train_stage(sends(number, at=3), loop, tmp_path / "cut")
    assert [path.name for path in list_checkpoints(tmp_path / "cut")] == ["checkpoint-00000004.pt"]
    train_stage(resumed, loop, tmp_path / "cut")
    assert equal(whole, resumed)


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    reached = []

    def interrupted_twice() -> None:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(stop.number)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert reached == [signal.SIGINT]


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as stop:
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert not stop
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_error_in_the_block_goes_before_the_signal() -> None:
    def fails_after_a_signal() -> None:
        with stop_on_signal():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_after_a_signal()


def test_a_signal_that_is_ignored_outside_stops_nothing(tmp_path: Path) -> None:
    """As Ctrl-C is in what a script starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train_stage(whole := Line(), LOOP, tmp_path / "whole")
        train_stage(struck := sends(signal.SIGINT, at=3), LOOP, tmp_path / "struck")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert equal(whole, struck)


def test_a_stage_that_was_stopped_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    """Whoever handles the signal may let it pass."""
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    stage = sends(signal.SIGTERM, at=3)
    with pytest.raises(TrainingError, match="stage line was asked to stop after step 4 of 7"):
        train_stage(stage, LOOP, tmp_path)
    assert heard == [signal.SIGTERM]
    assert all(parameter.requires_grad for parameter in stage.parameters())
