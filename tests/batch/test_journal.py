"""The journal: every record comes back, and what cannot be read is passed over and named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star_cli.batch.journal import Journal, Record
from star_cli.errors import OutputError
from tests.batch.conftest import fuzz

DONE = Record(job="a" * 64, status="done", file="x/y.png", sha256="b" * 64, seconds=1.5, size_bytes=7, res=32, line=3)
FAILED = Record(job="c" * 64, status="failed", error="out of memory", subject="a \u2028 cat", seed=2**62)


def journal_of(path: Path, *lines: bytes) -> Journal:
    path.write_bytes(b"".join(lines))
    journal = Journal(path)
    journal.refresh()
    return journal


@pytest.mark.parametrize("record", [DONE, FAILED])
def test_a_record_is_one_line_and_comes_back(record: Record) -> None:
    line = record.to_line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert Record.from_line(line) == record


def test_what_is_appended_is_read_by_all(tmp_path: Path) -> None:
    first, second = Journal(tmp_path / "j.jsonl"), Journal(tmp_path / "j.jsonl")
    first.refresh()
    second.refresh()
    first.append(DONE)
    second.refresh()
    assert second.records == {DONE.job: DONE}
    second.append(FAILED)
    first.refresh()
    assert list(first.records) == [DONE.job, FAILED.job]
    assert first.new == {DONE.job, FAILED.job}
    assert Journal(tmp_path / "j.jsonl").new == set()


def test_the_last_record_of_a_job_counts(tmp_path: Path) -> None:
    again = Record(job=DONE.job, status="done", file="z.png", sha256="d" * 64)
    journal = journal_of(tmp_path / "j.jsonl", DONE.to_line(), again.to_line())
    assert journal.records == {DONE.job: again}
    assert journal.owners == {"z.png": DONE.job}


def test_a_line_that_a_crash_cut_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = journal_of(path, DONE.to_line(), FAILED.to_line()[:30])
    assert (list(journal.records), journal.damaged) == ([DONE.job], [2])
    journal.append(FAILED)
    assert list(journal.records) == [DONE.job, FAILED.job]
    assert list(journal_of(path, path.read_bytes()).records) == [DONE.job, FAILED.job]


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n",
        b"\xff\x00\n",
        b"[]\n",
        b"[" * 100_000 + b"\n",
        json.dumps({**json.loads(DONE.to_line()), "v": 2}).encode() + b"\n",
        json.dumps({**json.loads(DONE.to_line()), "file": "../../etc/passwd.png"}).encode() + b"\n",
        json.dumps({**json.loads(DONE.to_line()), "file": "/etc/x.png"}).encode() + b"\n",
        json.dumps({**json.loads(DONE.to_line()), "file": 3}).encode() + b"\n",
        json.dumps({**json.loads(DONE.to_line()), "sha256": ""}).encode() + b"\n",
        json.dumps({**json.loads(DONE.to_line()), "seconds": True}).encode() + b"\n",
        json.dumps({"v": 1, "job": DONE.job, "status": "half"}).encode() + b"\n",
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: bytes) -> None:
    journal = journal_of(tmp_path / "j.jsonl", FAILED.to_line(), line, b"\n", DONE.to_line())
    assert (list(journal.records), journal.damaged) == ([FAILED.job, DONE.job], [2])


def test_unknown_names_of_a_line_are_passed_over(tmp_path: Path) -> None:
    line = json.dumps({**json.loads(DONE.to_line()), "later": [1]}).encode() + b"\n"
    assert journal_of(tmp_path / "j.jsonl", line).records == {DONE.job: DONE}


def test_a_journal_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = journal_of(path, DONE.to_line(), b"garbage\n")
    (tmp_path / "new").write_bytes(FAILED.to_line() + DONE.to_line())
    (tmp_path / "new").replace(path)
    journal.refresh()
    assert (list(journal.records), journal.damaged) == ([FAILED.job, DONE.job], [])
    path.unlink()
    journal.refresh()
    assert journal.records == {}


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j.jsonl"
    journal = journal_of(path, DONE.to_line())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        journal.append(FAILED)
    assert path.read_bytes() == DONE.to_line()


def test_a_disk_that_takes_half_a_line_keeps_none_of_it(tmp_path: Path) -> None:
    """A limit on the size of files, in a process of its own, stands for the disk."""
    path = tmp_path / "j.jsonl"
    path.write_bytes(DONE.to_line())
    code = f"""
import resource
from pathlib import Path
from star_cli.batch.journal import Journal, Record
from star_cli.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, ({path.stat().st_size + 40},) * 2)
try:
    Journal(Path({str(path)!r})).append(Record.from_line({FAILED.to_line()!r}))
except OutputError:
    print("told")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, path.read_bytes()) == ("told\n", DONE.to_line())


RECORDS = [
    Record(job=f"{number:064x}", status="done", file=f"{number}.png", sha256="e" * 64, seed=number)
    for number in range(6)
]


@fuzz(200)
@given(st.lists(st.sampled_from(range(6)) | st.binary(max_size=60)), st.integers(0, 200))
def test_whatever_stands_between_whole_lines_they_are_read(parts: list[int | bytes], cut: int) -> None:
    lines = [RECORDS[part].to_line() if isinstance(part, int) else part.replace(b"\n", b"") + b"\n" for part in parts]
    last = RECORDS[0].to_line()[:cut].rstrip(b"\n")
    with tempfile.TemporaryDirectory() as folder:
        journal = journal_of(Path(folder) / "j.jsonl", *lines, last)
        wanted = {RECORDS[part].job for part in parts if isinstance(part, int)}
        assert wanted <= set(journal.records) <= wanted | {RECORDS[0].job}
        journal.append(DONE)
        assert DONE.job in journal.records
        again = Journal(journal.path)
        again.refresh()
        assert again.records == journal.records
