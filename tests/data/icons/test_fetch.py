import hashlib
import io
import json
import pickle
import stat
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from star_cli.data.icons import fetch
from star_cli.data.icons.fetch import ICONS, IconSet, icons_root, open_icons
from star_cli.errors import DataError, DownloadError
from tests.data.icons.conftest import BODIES


def test_skin_tones_are_left_out(icon_folder: Path) -> None:
    icons = open_icons(icon_folder)
    assert set(icons.icons) == BODIES.keys() - {"waving-hand-dark", "waving-hand-medium-light"}


def test_the_set_is_the_same_from_a_package_a_json_and_a_folder(icon_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes((icon_folder / "data.json").read_bytes())
    packed = tmp_path / "fluent-emoji.tgz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(icon_folder / "icons.json", "package/icons.json")
    from_json, from_folder = open_icons(icon_folder / "icons.json"), open_icons(icon_folder)
    from_package = open_icons(packed)
    assert from_json.fingerprint == from_folder.fingerprint
    assert from_package.icons == from_folder.icons
    assert from_package.svg("red-apple") == from_folder.svg("red-apple")
    assert open_icons(from_package.path).fingerprint == from_package.fingerprint


def test_other_icons_are_another_set(icon_folder: Path, tmp_path: Path) -> None:
    drawn = json.loads((icon_folder / "icons.json").read_text())
    drawn["icons"]["house"]["body"] = "<g/>"
    (tmp_path / "icons.json").write_text(json.dumps(drawn))
    (tmp_path / "data.json").write_bytes((icon_folder / "data.json").read_bytes())
    assert open_icons(tmp_path).fingerprint != open_icons(icon_folder).fingerprint


def test_a_set_is_made_once_and_travels_as_its_path(icon_folder: Path) -> None:
    icons = open_icons(icon_folder)
    made = icons.path.stat().st_mtime_ns
    assert open_icons(icon_folder).path.stat().st_mtime_ns == made
    again = pickle.loads(pickle.dumps(icons))
    assert again.svg("house") == icons.svg("house")
    assert not list(icons_root().glob("*.tmp"))


def test_licences_are_told(icon_folder: Path) -> None:
    assert open_icons(icon_folder).sources == ["icons.json (given by the user)", "data.json (given by the user)"]
    assert "MIT" in ICONS.licence
    assert "Microsoft" in ICONS.licence


def test_an_unknown_icon_is_named(icon_folder: Path) -> None:
    with pytest.raises(DataError, match="no icon spoon"):
        open_icons(icon_folder).svg("spoon")


@pytest.mark.parametrize("content", ["not json", "[]", '{"icons": {"a": {}}}'])
def test_a_file_of_another_kind_is_refused(content: str, icon_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "icons.json").write_text(content)
    (tmp_path / "data.json").write_bytes((icon_folder / "data.json").read_bytes())
    with pytest.raises(DataError, match=r"icons\.json"):
        open_icons(tmp_path)
    assert not list(icons_root().glob("*"))


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="not an archive of icons"):
        open_icons(tmp_path / "set.zip")


@pytest.mark.parametrize("kept", [20, 200, -1])
def test_a_truncated_package_is_refused(kept: int, icon_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes((icon_folder / "data.json").read_bytes())
    packed = tmp_path / "fluent-emoji.tgz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(icon_folder / "icons.json", "package/icons.json")
    packed.write_bytes(packed.read_bytes()[: kept if kept > 0 else packed.stat().st_size // 2])
    with pytest.raises(DataError, match=r"fluent-emoji\.tgz cannot be read as a package"):
        open_icons(packed)


def test_a_package_damaged_inside_is_refused(icon_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes((icon_folder / "data.json").read_bytes())
    packed = tmp_path / "fluent-emoji.tgz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(icon_folder / "icons.json", "package/icons.json")
    data = bytearray(packed.read_bytes())
    for place in range(60, len(data) - 60, 50):
        data[place] ^= 0xFF
    packed.write_bytes(data)
    with pytest.raises(DataError, match=r"fluent-emoji\.tgz cannot be read as a package"):
        open_icons(packed)


def test_an_archive_of_the_user_s_own_is_not_to_be_deleted(tmp_path: Path, icon_folder: Path) -> None:
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("set.json", "[]")
    with pytest.raises(DataError, match="not an archive of icons") as caught:
        open_icons(tmp_path / "mine.zip")
    assert "delete" not in (caught.value.hint or "")
    kept = open_icons(icon_folder).path
    kept.write_bytes(b"PK")
    with pytest.raises(DataError, match="not an archive of icons") as caught:
        open_icons(icon_folder)
    assert "delete it" in (caught.value.hint or "")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        open_icons(tmp_path / "none.tgz")
    with pytest.raises(DataError, match=r"no file or folder .*none\.zip") as caught:
        open_icons(tmp_path / "none.zip")
    assert "delete" not in (caught.value.hint or "")
    with pytest.raises(DataError, match="neither") as caught:
        open_icons(tmp_path)
    assert "npm pack" in (caught.value.hint or "")


def test_without_npm_the_error_says_what_to_fetch_and_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DownloadError, match="npm") as caught:
        open_icons()
    hint = caught.value.hint or ""
    assert f"npm pack {ICONS.spec}" in hint
    assert str(icons_root()) in hint
    assert ICONS.file in hint


def _fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "npm"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_fetched_package_must_be_the_pinned_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fake_npm(tmp_path, f'echo something else > "$5/{ICONS.file}"', monkeypatch)
    with pytest.raises(DownloadError, match="hash is"):
        open_icons()
    assert not list(icons_root().glob("*.tgz"))


def test_what_npm_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fake_npm(tmp_path, "echo 'network is down' >&2; exit 1", monkeypatch)
    with pytest.raises(DownloadError, match="network is down"):
        open_icons()


def test_pinned_packages_are_fetched_once(icon_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """npm is asked once for each; afterwards the archive alone is enough."""
    pinned = {}
    for package, file, member in (
        (fetch.ICONS, "icons.json", "package/icons.json"),
        (fetch.WORDS, "data.json", "package/en/data.json"),
    ):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.add(icon_folder / file, member)
        (tmp_path / package.file).write_bytes(packed.getvalue())
        pinned[package.name] = replace(package, sha256=hashlib.sha256(packed.getvalue()).hexdigest())
    monkeypatch.setattr(fetch, "ICONS", pinned[fetch.ICONS.name])
    monkeypatch.setattr(fetch, "WORDS", pinned[fetch.WORDS.name])
    tools = tmp_path / "tools"
    tools.mkdir()
    _fake_npm(tools, f'echo "$2" >> {tmp_path}/asked; cp {tmp_path}/*.tgz "$5/"', monkeypatch)
    icons = open_icons()
    assert (tmp_path / "asked").read_text().split() == [fetch.ICONS.spec, fetch.WORDS.spec]
    assert all("MIT" in source for source in icons.sources)
    for packed_file in icons_root().glob("*.tgz"):
        packed_file.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(open_icons(), IconSet)
