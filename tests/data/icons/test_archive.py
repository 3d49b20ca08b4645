"""Archives of icons in several processes, and damaged ones."""

from __future__ import annotations

import hashlib
import multiprocessing
import multiprocessing.connection
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from star_cli.data.icons.archive import OpenArchive
from star_cli.data.icons.catalogue import Catalogue
from star_cli.data.icons.fetch import IconSet, icons_root
from star_cli.data.icons.render import IconRenders
from star_cli.errors import DataError

pytest.importorskip("resvg_py")

ROUNDS = 30
Read = Callable[[], list[bytes]]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on warns of it when threads run
@pytest.mark.parametrize("kind", ["rendered", "documents"])
def test_forked_workers_and_their_parent_read_the_same_icons(catalogue: Catalogue, kind: str) -> None:
    icons = catalogue.renders.icons
    read = _documents(icons) if kind == "documents" else _rendered(icons, [thing.icon for thing in catalogue.objects])
    expected = _hash(read())  # opens the file before the fork
    receiver, sender = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(target=_read_often, args=(read, sender))
    worker.start()
    sender.close()  # so that a worker that fails ends the wait
    assert receiver.recv() == "begun"
    for _ in range(ROUNDS):
        assert _hash(read()) == expected
    assert receiver.recv() == expected
    worker.join()
    assert worker.exitcode == 0
    receiver.close()


def _rendered(icons: IconSet, names: list[str]) -> Read:
    """Reads pixels that are on the disk."""
    renders = IconRenders(icons)

    def read() -> list[bytes]:
        renders._master.cache_clear()
        renders._resized.cache_clear()
        return [renders.image(name, 64).tobytes() for name in names]

    return read


def _documents(icons: IconSet) -> Read:
    """Reads SVG documents, larger ones than a file object reads ahead."""
    numbers, names = random.Random(0), [f"large-{number}" for number in range(20)]
    with zipfile.ZipFile(icons.path, "a") as archive:
        for name in names:
            archive.writestr(f"{name}.svg", numbers.randbytes(20_000).hex())
    again = IconSet(icons.path)
    return lambda: [again.svg(name).encode() for name in names]


def _hash(parts: list[bytes]) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _read_often(read: Read, sender: multiprocessing.connection.Connection) -> None:
    sender.send("begun")
    found = {_hash(read()) for _ in range(ROUNDS)}
    sender.send(found.pop() if len(found) == 1 else None)


def test_a_damaged_archive_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"some words " * 50)
    assert OpenArchive(path, "delete it").read("a").startswith(b"some words")
    data = bytearray(path.read_bytes())
    data[40:50] = b"\xff" * 10
    path.write_bytes(data)
    for damaged in (bytes(data), b"PK"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.zip cannot be read") as caught:
            OpenArchive(path, "delete it").read("a")
        assert caught.value.hint == "delete it"


def test_damaged_renders_are_named(catalogue: Catalogue) -> None:
    (kept,) = icons_root().glob("renders-*-64.zip")
    kept.write_bytes(kept.read_bytes()[:500])
    with pytest.raises(DataError, match=r"renders-.*-64\.zip cannot be read") as caught:
        IconRenders(catalogue.renders.icons).image("house", 64)
    assert "delete it" in str(caught.value.hint)
