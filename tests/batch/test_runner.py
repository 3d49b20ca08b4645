"""A batch is drawn: every image equals the same job alone, and nothing is done twice or lost."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from star_cli.batch.events import Event, Summary
from star_cli.batch.folder import BatchFolder
from star_cli.batch.runner import BatchRunner
from star_cli.batch.selection import Policy
from star_cli.batch.template import JOURNAL_FILE
from star_cli.errors import OptionError, OutputError
from star_cli.generated import GeneratedImage
from star_cli.images import read_recipe
from star_cli.jobs import ImageJob
from star_cli.pipeline import StarPipeline
from tests.batch.conftest import PlanOf, RunBatch, images_in, leftovers

WORDS = ["a red circle", "a blue square", "a green triangle", "x"]


def mixed_rows(count: int) -> list[str]:
    """Rows of several shapes, seeds and negative prompts."""
    chance = random.Random(0)
    return [
        json.dumps(
            {
                "prompt": chance.choice(WORDS),
                "seed": chance.randrange(1000),
                "res": chance.choice([32, 32, 64]),
                "negative": chance.choice(["", "", "blue"]),
                "guidance": chance.choice([2.0, 2.0, 1.0]),
            }
        )
        for _ in range(count)
    ]


def journal_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JOURNAL_FILE).read_text().splitlines()]


# -- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 8])
def test_batched_equals_alone_to_the_byte(
    tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch, tiny_pipeline: StarPipeline, size: int
) -> None:
    rows = mixed_rows(20)
    random.Random(size).shuffle(rows)
    plan = plan_of("\n".join(rows), "jsonl", template="{index}")
    summary, events = run_batch(plan, tmp_path, batch_size=size)
    assert (summary.done, summary.failed, len(events)) == (20, 0, 20)
    for event, row in zip(events, map(json.loads, rows), strict=True):
        assert event.path is not None
        prompt, guidance = row.pop("prompt"), row.pop("guidance")
        options = plan.rows[0].setting.sampling.from_dict(
            {**plan.rows[0].setting.sampling.to_dict(), "guidance": guidance}
        )
        (alone,) = tiny_pipeline(prompt, options=options, **row)
        assert event.path.read_bytes() == alone.encode()
        assert read_recipe(event.path) == alone.recipe


def test_a_pass_of_mixed_jobs_draws_the_tokens_of_each_alone(tiny_pipeline: StarPipeline) -> None:
    jobs = [ImageJob(word, seed, negative) for seed, word in enumerate(WORDS) for negative in ("", "blue")]
    together = list(tiny_pipeline.draw_jobs(jobs, res=32, options=tiny_pipeline.defaults))
    for job, image in zip(jobs, together, strict=True):
        (alone,) = tiny_pipeline(str(job.subject), seed=job.seed, negative=job.negative, res=32)
        assert all(torch.equal(one, other) for one, other in zip(image.token_maps, alone.token_maps, strict=True))
        assert image.recipe == alone.recipe


def test_events_and_journal_tell_what_was_done(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    _, events = run_batch(plan_of("\n".join(mixed_rows(12)), "jsonl"), tmp_path, batch_size=4)
    assert [event.job.index for event in events if event.job] == list(range(1, 13))
    lines = {line["job"]: line for line in journal_lines(tmp_path)}
    for event in events:
        assert event.job is not None
        line = lines[event.job.hash]
        data = (tmp_path / line["file"]).read_bytes()
        assert line["sha256"] == hashlib.sha256(data).hexdigest()
        assert (line["size_bytes"], line["seed"], line["status"]) == (len(data), event.job.seed, "done")
        assert line["seconds"] > 0
    assert leftovers(tmp_path) == []


def test_every_format_carries_its_recipe(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    rows = [{"prompt": "x", "format": "jpg"}, {"prompt": "x", "out": "deep/er/y.webp"}, {"prompt": "x"}]
    summary, events = run_batch(plan_of("\n".join(map(json.dumps, rows)), "jsonl"), tmp_path)
    assert summary.done == 3
    names = [event.path.relative_to(tmp_path).as_posix() for event in events if event.path]
    assert names == ["00001-x-0.jpg", "deep/er/y.webp", "00003-x-0.png"]
    assert all(read_recipe(tmp_path / name)["prompt"] == "x" for name in names)


def test_words_that_are_not_read_are_told_once_a_row(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    _, events = run_batch(plan_of("word " * 40, num=3), tmp_path)
    (warning,) = [event for event in events if event.kind == "warning"]
    assert warning.message.startswith("too long, the model does not read: word word")


# -- again ------------------------------------------------------------------------------------------------------------


def test_called_again_nothing_is_drawn(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    plan = plan_of("x\ny\nx\n", num=2)
    run_batch(plan, tmp_path)
    journal = (tmp_path / JOURNAL_FILE).read_bytes()
    summary, events = run_batch(plan, tmp_path)
    assert (summary.done, summary.kept) == (0, 6)
    assert [event.kind for event in events] == ["kept"] * 6
    assert (tmp_path / JOURNAL_FILE).read_bytes() == journal


def test_only_what_is_missing_or_damaged_is_drawn(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    plan = plan_of("a\nb\nc\nd\n", template="{slug}")
    run_batch(plan, tmp_path)
    before = images_in(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes(before["b.png"][:-1] + b"x")
    summary, events = run_batch(plan, tmp_path)
    assert [event.kind for event in events] == ["done", "done", "kept", "kept"]
    assert summary.done == 2
    assert images_in(tmp_path) == before


def test_a_changed_file_draws_the_new_lines_alone(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    run_batch(plan_of("a\nb\n"), tmp_path)
    before = images_in(tmp_path)
    summary, events = run_batch(plan_of("new\na\nother\nb\n"), tmp_path)
    assert [event.kind for event in events] == ["done", "kept", "done", "kept"]
    after = images_in(tmp_path)
    assert set(after) - set(before) == {"00001-new-0.png", "00003-other-0.png"}
    assert {name: after[name] for name in before} == before
    assert summary.kept == 2


def test_redo_draws_all_again_in_place(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    plan = plan_of("a\nb\n")
    run_batch(plan, tmp_path)
    before = images_in(tmp_path)
    summary, _ = run_batch(plan, tmp_path, redo=True)
    assert summary.done == 2
    assert images_in(tmp_path) == before
    assert len(journal_lines(tmp_path)) == 4


def test_shards_share_the_work_without_rest(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    plan = plan_of("a\nb\nc\nd\ne\n")
    drawn = [run_batch(plan, tmp_path, shard=(part, 3)) for part in (1, 2, 3)]
    assert [(summary.jobs, summary.done, summary.kept) for summary, _ in drawn] == [(2, 2, 0), (2, 2, 0), (1, 1, 0)]
    alone = tmp_path / "alone"
    run_batch(plan, alone)
    assert images_in(alone) == {name: data for name, data in images_in(tmp_path).items() if "/" not in name}


def test_two_runs_on_one_folder_share_the_work(
    tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch, tiny_pipeline: StarPipeline
) -> None:
    plan = plan_of("\n".join(f"prompt {number}" for number in range(24)))
    summaries: list[Summary] = []
    events: list[Event] = []

    def work() -> None:
        with BatchFolder(tmp_path / "two") as folder:
            summaries.append(BatchRunner(tiny_pipeline, plan, folder, Policy(batch_size=2)).run(events.append))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(summary.done for summary in summaries) == 24
    assert all(summary.done + summary.kept + summary.elsewhere == 24 for summary in summaries)
    assert len(journal_lines(tmp_path / "two")) == 24
    run_batch(plan, tmp_path / "one")
    assert images_in(tmp_path / "one") == images_in(tmp_path / "two")
    assert leftovers(tmp_path) == []


# -- failures ---------------------------------------------------------------------------------------------------------


def failing(pipe: StarPipeline, monkeypatch: pytest.MonkeyPatch, fail: Any) -> list[int]:
    """Every pass asks `fail(jobs)`, which may raise; the sizes of all passes."""
    sizes: list[int] = []
    draw = StarPipeline.draw_jobs

    def draw_jobs(self: StarPipeline, jobs: Sequence[ImageJob], **options: Any) -> Iterator[GeneratedImage]:
        sizes.append(len(jobs))
        fail(jobs)
        yield from draw(self, jobs, **options)

    monkeypatch.setattr(StarPipeline, "draw_jobs", draw_jobs)
    return sizes


def bad_prompt(jobs: Sequence[ImageJob]) -> None:
    if any(job.subject == "bad" for job in jobs):
        raise RuntimeError("boom")


def test_one_bad_job_does_not_stop_the_rest(
    tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch, tiny_pipeline: StarPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("a\nb\nbad\nc\nd\n")
    with monkeypatch.context() as patch:
        failing(tiny_pipeline, patch, bad_prompt)
        summary, events = run_batch(plan, tmp_path, batch_size=4)
        assert [event.kind for event in events] == ["done", "done", "failed", "done", "done"]
        assert (summary.done, summary.failed) == (4, 1)
        assert [event.message for event in summary.failures] == ["RuntimeError: boom"]
        (failed,) = [line for line in journal_lines(tmp_path) if line["status"] == "failed"]
        assert (failed["error"], failed["subject"], failed["line"]) == ("RuntimeError: boom", "bad", 3)
        again, events = run_batch(plan, tmp_path)
        assert (again.done, again.failed, events[2].kind) == (0, 1, "failed before")
    healed, _ = run_batch(plan, tmp_path, retry_failed=True)
    assert (healed.done, healed.kept, healed.failed) == (1, 4, 0)


def test_too_many_failures_end_the_batch(
    tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch, tiny_pipeline: StarPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(tiny_pipeline, monkeypatch, bad_prompt)
    plan = plan_of("bad\n" * 10 + "a\n" * 10)
    summary, _ = run_batch(plan, tmp_path, batch_size=1, max_failures=3)
    assert (summary.failed, summary.gave_up) == (3, True)
    assert summary.done == 0


def test_out_of_memory_halves_the_passes_and_goes_on(
    tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch, tiny_pipeline: StarPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(jobs: Sequence[ImageJob]) -> None:
        if len(jobs) > 2:
            raise torch.OutOfMemoryError("out of memory")

    sizes = failing(tiny_pipeline, monkeypatch, short)
    plan = plan_of("\n".join(f"prompt {number}" for number in range(16)))
    summary, events = run_batch(plan, tmp_path, batch_size=8)
    assert (summary.done, summary.failed) == (16, 0)
    assert [event.job.index for event in events if event.job] == list(range(1, 17))
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[3:]) == 2  # a pass that was being gathered when the size fell may leave one over


def test_a_job_that_no_memory_is_enough_for_fails_alone(
    tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch, tiny_pipeline: StarPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(jobs: Sequence[ImageJob]) -> None:
        if any(job.subject == "bad" for job in jobs):
            raise MemoryError

    failing(tiny_pipeline, monkeypatch, short)
    summary, _ = run_batch(plan_of("a\nbad\nb\nc\n"), tmp_path, batch_size=4)
    assert (summary.done, [event.message for event in summary.failures]) == (3, ["out of memory"])


def test_a_name_that_cannot_be_written_fails_alone(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    rows = [{"prompt": "x", "out": "a.png"}, {"prompt": "y", "out": "a.png/b.png"}, {"prompt": "z"}]
    plan = plan_of("\n".join(map(json.dumps, rows)), "jsonl")
    summary, events = run_batch(plan, tmp_path, batch_size=1, writers=1)  # one after the other
    assert (summary.done, summary.failed) == (2, 1)
    assert "a.png" in events[1].message


def test_a_full_disk_ends_the_batch_and_fails_no_job(
    tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("\n".join(f"prompt {number}" for number in range(8)))
    sync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 4:  # two images and their journal lines
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device"):
            run_batch(plan, tmp_path, batch_size=2, writers=1)
    assert len(images_in(tmp_path)) == 2
    assert [line["status"] for line in journal_lines(tmp_path)] == ["done"] * 2
    assert leftovers(tmp_path) == []
    summary, _ = run_batch(plan, tmp_path)
    assert (summary.done, summary.kept) == (6, 2)


@pytest.mark.parametrize("kind", ["drawing", "done"])
def test_a_watcher_that_fails_ends_the_batch_and_fails_no_job(
    tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch, tiny_pipeline: StarPipeline, kind: str
) -> None:
    def watch(event: Event) -> None:
        if event.kind == kind:
            raise OutputError("cannot write to standard output")

    plan = plan_of("a\nb\nc\nd\n")
    with BatchFolder(tmp_path) as folder, pytest.raises(OutputError, match="cannot write to standard output"):
        BatchRunner(tiny_pipeline, plan, folder, Policy(batch_size=1)).run(watch)
    summary, _ = run_batch(plan, tmp_path)
    assert (summary.failed, summary.missing) == (0, 0)


def test_a_folder_that_is_deleted_ends_the_batch(
    tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch, tiny_pipeline: StarPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"

    def delete(jobs: Sequence[ImageJob]) -> None:
        if jobs[0].subject == "prompt 4":
            path.rename(tmp_path / "away")  # at once: writers are at work, and would hold up a removal
            shutil.rmtree(tmp_path / "away")

    failing(tiny_pipeline, monkeypatch, delete)
    with pytest.raises(OutputError, match="is gone"):
        run_batch(plan_of("\n".join(f"prompt {number}" for number in range(40))), path, batch_size=2)
    assert not path.exists()


# -- stopping ---------------------------------------------------------------------------------------------------------


def test_stop_finishes_what_is_in_work(tmp_path: Path, plan_of: PlanOf, tiny_pipeline: StarPipeline) -> None:
    plan = plan_of("\n".join(f"prompt {number}" for number in range(30)))
    events: list[Event] = []
    with BatchFolder(tmp_path) as folder:
        runner = BatchRunner(tiny_pipeline, plan, folder, Policy(batch_size=3))

        def on_event(event: Event) -> None:
            events.append(event)
            if event.kind == "drawing" and len(images_in(tmp_path)) >= 3:
                runner.stop()

        summary = runner.run(on_event)
    done = [event for event in events if event.kind == "done"]
    assert summary.is_stopped
    assert 3 <= summary.done == len(done) == len(images_in(tmp_path)) == len(journal_lines(tmp_path)) < 30
    assert leftovers(tmp_path) == []


def test_words_that_are_being_read_are_waited_for(
    tmp_path: Path, plan_of: PlanOf, tiny_pipeline: StarPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends while a thread of it is in the text encoder is aborted: 134 in place of 130."""
    read = tiny_pipeline.tell
    passes: list[Sequence[ImageJob]] = []
    begun, ended = threading.Event(), threading.Event()

    def read_slowly(jobs: Sequence[ImageJob]) -> Any:
        passes.append(jobs)
        if len(passes) == 1:
            return read(jobs)
        begun.set()  # the second pass, while the first is drawn
        time.sleep(0.5)
        ended.set()
        return read(jobs)

    monkeypatch.setattr(tiny_pipeline, "tell", read_slowly)
    with BatchFolder(tmp_path / "out") as folder:
        runner = BatchRunner(tiny_pipeline, plan_of("cat\ndog\n"), folder, Policy(batch_size=1))

        def on_event(event: Event) -> None:
            begun.wait()
            runner.stop()

        assert runner.run(on_event).is_stopped
        assert ended.is_set()


def test_a_pass_that_takes_too_long_is_given_up(
    tmp_path: Path, plan_of: PlanOf, tiny_pipeline: StarPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("star_cli.batch.runner.GRACE_S", -1.0)
    with BatchFolder(tmp_path) as folder:
        runner = BatchRunner(tiny_pipeline, plan_of("a\nb\n"), folder, Policy())
        summary = runner.run(lambda event: runner.stop())
    assert (summary.done, summary.is_stopped) == (0, True)
    assert images_in(tmp_path) == {}


def test_time_is_looked_at_between_the_images_of_a_pass_too(
    tmp_path: Path, plan_of: PlanOf, tiny_pipeline: StarPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("star_cli.batch.runner.GRACE_S", -1.0)
    draw = StarPipeline.draw_jobs

    def draw_jobs(self: StarPipeline, jobs: Sequence[ImageJob], **options: Any) -> Iterator[GeneratedImage]:
        for number, image in enumerate(draw(self, jobs, **{**options, "on_scale": None})):
            if number == 1:
                runner.stop()
            yield image

    monkeypatch.setattr(StarPipeline, "draw_jobs", draw_jobs)
    with BatchFolder(tmp_path) as folder:
        runner = BatchRunner(tiny_pipeline, plan_of("a\nb\nc\nd\n"), folder, Policy(batch_size=4))
        summary = runner.run()
    assert (summary.done, summary.is_stopped, len(images_in(tmp_path))) == (2, True, 2)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"max_failures": 0}, {"shard": (0, 2)}, {"shard": (3, 2)}, {"shard": (1, 0)}]
)
def test_policy_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Policy(**wrong)
