"""What `star batch` says: of each image as it is done, and at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from star_cli.cli import console
from star_cli.cli.batch_panel import BatchPanel, clock, failure_in_words
from star_cli.cli.errors import shorten

if TYPE_CHECKING:
    from star_cli.batch.events import Event, Summary

_MOST_NAMED = 20


def tell(event: Event, panel: BatchPanel, json: bool, quiet: bool) -> None:
    """Say what happened, on the panel and as a line."""
    panel.on_event(event)
    if event.kind == "warning" and event.job is not None:
        console.warn(f"line {event.job.row.line}: {shorten(event.message, 250)}", quiet)
    elif event.kind == "failed":
        console.warn(f"failed: {failure_in_words(event)}", quiet)
    if json and event.kind != "drawing":
        with panel.aside():
            console.print_json(_as_json(event))
    elif event.kind == "done" and event.path is not None:
        with panel.aside():
            console.print_path(event.path)


def _as_json(event: Event) -> dict[str, Any]:
    said: dict[str, Any] = {"event": event.kind}
    if (job := event.job) is not None:
        key = "prompt" if isinstance(job.row.subject, str) else "class"
        said |= {"index": job.index, "line": job.row.line, key: job.row.subject, "seed": job.seed, "job": job.hash}
        said["res"] = job.row.setting.res
    if event.path is not None:
        said["path"] = str(event.path)
    if event.record is not None and event.record.status == "done":
        said |= {"sha256": event.record.sha256, "seconds": event.record.seconds}
    if event.message:
        said["message"] = event.message
    return said


def conclude(summary: Summary, json: bool, quiet: bool) -> None:
    """The last words, and the exit code."""
    counts = {"done": summary.done, "kept": summary.kept, "elsewhere": summary.elsewhere, "failed": summary.failed}
    if json:
        console.print_json({"event": "end", **counts, "missing": summary.missing, "seconds": round(summary.seconds, 3)})
    if not quiet:
        console.say(_in_words(summary))
    if summary.is_stopped:
        raise KeyboardInterrupt
    if summary.failed:
        console.say(f"error: {summary.failed} of {summary.jobs} images failed")
        for event in summary.failures[:_MOST_NAMED]:
            console.say(f"  {failure_in_words(event)}")
        if len(summary.failures) > _MOST_NAMED:
            console.say(f"  and {summary.failed - _MOST_NAMED} more: see the journal")
        console.say("hint: call it again with --retry-failed")
        raise typer.Exit(1)


def _in_words(summary: Summary) -> str:
    """What was done, in one line."""
    parts = [f"{summary.done} drawn in {clock(summary.seconds)}"]
    if summary.done and summary.seconds > 0:
        parts[0] += f" ({summary.done / summary.seconds:.2f} images/s)"
    parts += [f"{count} {what}" for count, what in _others(summary) if count]
    if summary.gave_up:
        parts.append("stopped after too many failures")
    return ", ".join(parts)


def _others(summary: Summary) -> list[tuple[int, str]]:
    return [
        (summary.kept, "were here"),
        (summary.elsewhere, "drawn by other processes"),
        (summary.failed, "failed"),
        (summary.missing, "missing"),
    ]
