"""`star batch --dry-run`: what would be drawn, under which names, how long it may take and how much disk."""

from __future__ import annotations

from pathlib import Path

from star_cli.batch.estimate import Estimate
from star_cli.batch.folder import BatchFolder
from star_cli.batch.plan import Plan
from star_cli.batch.selection import Policy
from star_cli.cli import console
from star_cli.cli.batch_panel import clock

_STATES = {"todo": "draw", "kept": "kept", "failed": "failed"}


def list_jobs(plan: Plan, where: Path, policy: Policy, json: bool, quiet: bool) -> None:
    """One line for each job: its state, file, seed, resolution and prompt; then the sums on standard error."""
    folder = BatchFolder(where)
    folder.journal.refresh()
    estimate = Estimate(folder.journal.records.values())
    counts = dict.fromkeys(_STATES, 0)
    seconds, size_bytes, is_measured, unknown = 0.0, 0.0, True, 0
    for job in plan.jobs():
        if not policy.has(job):
            continue
        state = "todo" if policy.redo else folder.state(job)
        if state == "failed" and policy.retry_failed:
            state = "todo"
        counts[state] += 1
        res = job.row.setting.res
        if state == "todo":
            one = estimate.seconds(res)
            seconds, unknown = seconds + (one or 0.0), unknown + (one is None)
            size, was_measured = estimate.size_bytes(res)
            size_bytes, is_measured = size_bytes + size, is_measured and was_measured
        file = where / (folder.place(job)[0].file if state != "failed" else job.file)
        if json:
            key = "prompt" if isinstance(job.row.subject, str) else "class"
            said = {"event": "job", "state": _STATES[state], "index": job.index, "line": job.row.line}
            console.print_json({**said, "path": str(file), key: job.row.subject, "seed": job.seed, "res": res})
        else:
            subject = console.printable(str(job.row.subject))
            console.print_line(f"{_STATES[state]}\t{file}\t{job.seed}\t{res}\t{subject}", keep="\t")
    time_in_words = "time unknown before a first image" if unknown else f"about {clock(seconds)}"
    if json:
        told = {"seconds": None if unknown else round(seconds, 1), "bytes": round(size_bytes)}
        console.print_json({"event": "plan", **{_STATES[state]: count for state, count in counts.items()}, **told})
    if not quiet:
        size_in_words = f"{'about' if is_measured else 'at most'} {size_bytes / 1e6:,.1f} MB"
        rest = ", ".join(f"{counts[state]} {_STATES[state]}" for state in ("kept", "failed") if counts[state])
        todo = f"{counts['todo']} to draw{f' ({rest})' if rest else ''}"
        console.say(f"{todo}: {time_in_words}, {size_in_words}")
