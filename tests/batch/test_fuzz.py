"""Whatever stands in an input or a journal, it is read or refused in words, and no image is lost.

A few hundred examples in the usual run; FUZZ_EXAMPLES=10000 asks for more.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star_cli.batch.folder import BatchFolder
from star_cli.batch.journal import Journal
from star_cli.batch.plan import Plan
from star_cli.batch.rows import COLUMNS
from star_cli.batch.template import JOURNAL_FILE
from star_cli.errors import OptionError
from tests.batch.conftest import PlanOf, RunBatch, fuzz, images_in
from tests.batch.test_template import is_legal

INPUTS: dict[str, bytes] = {
    "text": "\ufeff# shapes\r\na red circle\r\n\r\nzwei große Kreise\n赤い丸\n".encode(),
    "jsonl": b'{"prompt": "a\\ncat", "seed": 7, "out": "a/b.png"}\n{"prompt": "x", "top-p": 1, "num": 2}\n',
    "csv": b'prompt,seed,out,res,stable\r\n"a ""red"", round\ncircle",7,a/b.webp,64,no\r\nx,,../y,,\r\n',
    "tsv": b"prompt\tnegative\ttop-k\nx\tblue\t3\ny\t\t\n",
}
BYTES = st.sampled_from([b"\n", b"\r", b'"', b",", b"{", b"}", b"\x00", b"\xff", b"\xef\xbb\xbf", b"-", b"9" * 400])


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with some taken out, doubled, changed or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 30)))
        kind = draw(st.sampled_from(["cut", "double", "put", "any", "end"]))
        if kind == "cut":
            del data[at:end]
        elif kind == "double":
            data[at:at] = data[at:end]
        elif kind == "end":
            del data[at:]
        else:
            data[at:at] = draw(BYTES) if kind == "put" else draw(st.binary(max_size=8))
    return bytes(data)


def check_names(plan: Plan) -> None:
    names = [job.file for job in plan.jobs()]
    assert len({name.casefold() for name in names}) == len(names) == len(plan)
    assert all(is_legal(name) for name in names), names


def test_a_damaged_input_is_drawn_or_refused_in_words(plan_of: PlanOf) -> None:
    @fuzz(300)
    @given(st.data(), st.sampled_from(sorted(INPUTS)))
    def check(data: st.DataObject, kind: str) -> None:
        text = data.draw(damaged(INPUTS[kind]))
        try:
            plan = plan_of(text, kind, "{slug}-{seed}")
        except OptionError:
            return
        if len(plan) < 10_000:  # "num" may have become large
            check_names(plan)

    check()


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 70)
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["a cat", "../x", "A.PNG", "a.png", "nul.png", "star-batch.jsonl/x", ".star/x", "e\u0301", "\u00e9"]
    )
    | st.lists(st.none(), max_size=1)
)
ROWS = st.lists(st.dictionaries(st.sampled_from(sorted(COLUMNS)), VALUES, max_size=4), min_size=1, max_size=4)


def test_any_options_of_rows_are_drawn_or_refused_in_words(plan_of: PlanOf) -> None:
    @fuzz(300)
    @given(ROWS, st.integers(0, 5))
    def check(rows: list[dict[str, Any]], num: int) -> None:
        kept = []
        for row in rows:
            line = json.dumps({"prompt": "x", **row, "num": num})
            try:
                plan_of(line, "jsonl")
            except OptionError:
                continue
            kept.append(line)
        if kept:
            check_names(plan_of("\n".join(kept), "jsonl", "{slug}"))

    check()


@pytest.fixture
def drawn(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> tuple[Plan, Path]:
    """Four images and their journal."""
    plan = plan_of("x\ny\nz\nx\n", template="{slug}")
    run_batch(plan, tmp_path / "drawn")
    return plan, tmp_path / "drawn"


def test_any_damage_to_a_journal_is_read_without_an_error(drawn: tuple[Plan, Path], tmp_path: Path) -> None:
    whole = (drawn[1] / JOURNAL_FILE).read_bytes()
    jobs = {job.hash for job in drawn[0].jobs()}

    @fuzz(300)
    @given(damaged(whole))
    def check(data: bytes) -> None:
        (tmp_path / "j.jsonl").write_bytes(data)
        journal = Journal(tmp_path / "j.jsonl")
        journal.refresh()
        untouched = {json.loads(line)["job"] for line in set(whole.splitlines()) & set(data.split(b"\n"))}
        assert untouched <= set(journal.records)
        assert all(is_legal(record.file) for record in journal.records.values() if record.status == "done")
        assert len(set(journal.records) & jobs) <= 4

    check()


def test_no_image_is_lost_whatever_happened_to_the_journal(
    drawn: tuple[Plan, Path], tmp_path: Path, run_batch: RunBatch
) -> None:
    plan, where = drawn
    before, whole = images_in(where), (where / JOURNAL_FILE).read_bytes()

    @fuzz(25)
    @given(damaged(whole))
    def check(data: bytes) -> None:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(where, tmp_path / "copy")
        (tmp_path / "copy" / JOURNAL_FILE).write_bytes(data)
        summary, _ = run_batch(plan, tmp_path / "copy", retry_failed=True)
        assert summary.failed == 0
        after = images_in(tmp_path / "copy")
        assert {name: after[name] for name in before} == before
        with BatchFolder(tmp_path / "copy") as folder:
            assert folder.messages == []
            assert all(folder.state(job) == "kept" for job in plan.jobs())

    check()
