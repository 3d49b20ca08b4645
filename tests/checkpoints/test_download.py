"""Fetching from a hub: a tiny one on loopback, spoken to by huggingface_hub as it speaks to the real one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import close_session, constants
from typer.testing import CliRunner, Result

from star_cli.checkpoints.published import PUBLISHED
from star_cli.cli.app import app
from tests.checkpoints.official_files import TINY_STAR, TINY_VAR, write_files

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "a" * 40

MODELS = [
    replace(TINY_STAR, text_folder=None),
    replace(TINY_STAR, name="tiny-text", text_folder=None, transformer_file=None),
    TINY_VAR,
]

# The published models are the tiny ones, and the command is the installed one.
PROGRAM = """
import sys
from star_cli.checkpoints.published import PUBLISHED
from tests.checkpoints.official_files import TINY_VAR
PUBLISHED[TINY_VAR.name] = TINY_VAR
from star_cli.cli.app import app
app(sys.argv[1:], prog_name="star")
"""


class Hub(ThreadingHTTPServer):
    """Serves the files of one repository; may break off, forbid, or lie."""

    daemon_threads = True

    def __init__(self, folder: Path, repository: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.repository = folder, repository
        self.breaks: dict[str, list[int]] = {}
        """Bytes after which the next answers for a file break off."""
        self.hashes: dict[str, str] = {}
        """Hashes to give instead of the right ones."""
        self.token: str | None = None
        self.asked: list[tuple[str, str, str | None]] = []
        """Method, file, range."""

    def handle_error(self, *_: object) -> None:
        """A reader who breaks off is no error of ours, and what a test reads as standard error is not for it."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub, path = self.server, unquote(self.path.partition("?")[0])
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._refuse(401, "RepoNotFound")
        if path.startswith(f"/api/models/{hub.repository}/tree/"):
            files = [file for file in sorted(hub.folder.rglob("*")) if file.is_file()]
            entries = [
                {
                    "type": "file",
                    "path": file.relative_to(hub.folder).as_posix(),
                    "size": file.stat().st_size,
                    "oid": "b" * 40,
                }
                for file in files
            ]
            return self._send(json.dumps(entries).encode(), body, {"Content-Type": "application/json"})
        prefix = f"/{hub.repository}/resolve/main/"
        if not path.startswith(prefix):
            return self._refuse(401, "RepoNotFound")
        name = path.removeprefix(prefix)
        hub.asked.append((self.command, name, self.headers.get("Range")))
        if not (hub.folder / name).is_file():
            return self._refuse(404, "EntryNotFound")
        data = (hub.folder / name).read_bytes()
        etag = hub.hashes.get(name) or hashlib.sha256(data).hexdigest()
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(data)),
            "Accept-Ranges": "bytes",
        }
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self._send(data[start:], body, headers, 206 if start else 200, name)

    def _send(
        self, data: bytes, body: bool, headers: dict[str, str], status: int = 200, name: str | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        if name and (breaks := self.server.breaks.get(name)):
            self.wfile.write(data[: breaks.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    server = Hub(tmp_path / "repository", TINY_VAR.repository)
    write_files(server.folder, TINY_VAR)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Machine:
    """Runs `star weights` in this process; each has a hub cache and a star cache of its own."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch):
        self.home, self.monkeypatch = home, monkeypatch

    def star(
        self, *arguments: str, endpoint: str = "http://127.0.0.1:9", offline: bool = False, cache: str = "star"
    ) -> Result:
        # huggingface_hub reads its environment once, when it is imported; this is what it makes of it
        self.monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        self.monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        self.monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self.home / "hf" / "hub"))
        self.monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        self.monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # bytes a broken connection can cost
        self.monkeypatch.setenv("STAR_CACHE", str(self.home / cache))
        return CliRunner().invoke(app, ["weights", *arguments])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    (tmp_path / "home").mkdir()
    for name in list(PUBLISHED):
        monkeypatch.delitem(PUBLISHED, name)
    for model in MODELS:
        monkeypatch.setitem(PUBLISHED, model.name, model)
    yield Machine(tmp_path / "home", monkeypatch)
    close_session()


def test_download_converts_and_names_the_model_and_then_needs_no_network(hub: Hub, machine: Machine) -> None:
    first = machine.star("download", "tiny-var", endpoint=hub.url)
    assert (first.exit_code, first.stderr) == (0, "")
    folder = machine.home / "star" / "models" / "tiny-var"
    assert first.stdout == f"{folder}\n"
    provenance = json.loads((folder / "config.json").read_text())["provenance"]
    data = (hub.folder / "tiny-var.pth").read_bytes()
    assert provenance["commit"] == COMMIT
    assert provenance["official_sha256"]["tiny-var.pth"] == hashlib.sha256(data).hexdigest()
    hub.asked.clear()
    again = machine.star("download", "tiny-var", endpoint=hub.url)
    assert (again.stdout, hub.asked) == (first.stdout, [])
    verified = machine.star("verify", "tiny-var")
    assert verified.stdout.splitlines()[0] == "transformer.safetensors\tok"
    # converted anew from the hub's cache, with the network switched off
    offline = machine.star("download", "tiny-var", "--dtype", "float16", offline=True, cache="other")
    assert (offline.exit_code, offline.stderr) == (0, "")
    assert offline.stdout == f"{machine.home / 'other' / 'models' / 'tiny-var'}\n"


def test_settings_of_the_environment_are_honoured_by_a_process_of_its_own(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    usual = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_secret"}
    own = {"STAR_CACHE": str(tmp_path / "star"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "weights", "download", "tiny-var"],
        env={**usual, **settings, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'star' / 'models' / 'tiny-var'}\n", "")
    assert list((tmp_path / "hf" / "hub").glob("models--*/snapshots/*/tiny-var.pth"))


def test_broken_connection_is_gone_on_with(hub: Hub, machine: Machine) -> None:
    size = (hub.folder / "tiny-var.pth").stat().st_size
    hub.breaks["tiny-var.pth"] = [size // 2]
    result = machine.star("download", "tiny-var", endpoint=hub.url)
    assert (result.exit_code, result.stderr) == (0, "")
    ranges = [given for method, name, given in hub.asked if (method, name) == ("GET", "tiny-var.pth")]
    assert ranges[0] is None
    assert 0 < int(str(ranges[1]).removeprefix("bytes=").removesuffix("-")) <= size // 2
    assert len(ranges) == 2


def test_interrupted_download_is_gone_on_with_by_the_next_command(hub: Hub, machine: Machine) -> None:
    data = (hub.folder / "tiny-var.pth").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    blobs = machine.home / "hf" / "hub" / f"models--{hub.repository.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest}.incomplete").write_bytes(data[:1000])  # what a process that was killed leaves
    result = machine.star("download", "tiny-var", endpoint=hub.url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert ("GET", "tiny-var.pth", "bytes=1000-") in hub.asked
    assert (blobs / digest).read_bytes() == data
    assert not list(blobs.glob("*.incomplete"))


def test_wrong_hash_is_named_and_nothing_is_left(hub: Hub, machine: Machine) -> None:
    hub.hashes["tiny-var.pth"] = "0" * 64
    result = machine.star("download", "tiny-var", endpoint=hub.url)
    assert result.exit_code == 1
    assert "error: tiny-var.pth: hash is " in result.stderr
    assert ", the hub says 000000000000..." in result.stderr
    assert not list((machine.home / "hf").rglob("*.incomplete"))
    assert not (machine.home / "star").exists()


def test_damaged_file_in_the_cache_is_found_and_force_fetches_it_again(hub: Hub, machine: Machine) -> None:
    machine.star("download", "tiny-var", endpoint=hub.url)
    digest = hashlib.sha256((hub.folder / "tiny-var.pth").read_bytes()).hexdigest()
    (blob,) = (machine.home / "hf").rglob(digest)
    data = bytearray(blob.read_bytes())
    data[500] ^= 1
    blob.write_bytes(data)
    fresh = "other"
    damaged = machine.star("download", "tiny-var", endpoint=hub.url, cache=fresh)
    assert "error: tiny-var.pth: hash is " in damaged.stderr
    assert "--force" in damaged.stderr
    assert machine.star("download", "tiny-var", "--force", endpoint=hub.url, cache=fresh).exit_code == 0


def test_missing_file_is_named_with_those_that_are_there(hub: Hub, machine: Machine) -> None:
    (hub.folder / "tiny-var.pth").rename(hub.folder / "var_tiny_2.pth")
    result = machine.star("download", "tiny-var", endpoint=hub.url)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == (
        f"error: tiny-var.pth: {hub.repository} has no such file; it has vae_ch160v4096z32.pth, var_tiny_2.pth"
    )
    named = machine.star("download", "tiny-var", "--file", "var_tiny_2.pth", endpoint=hub.url)
    assert named.exit_code == 0


def test_file_whose_name_is_not_known_is_looked_for_and_never_guessed(hub: Hub, machine: Machine) -> None:
    hub.repository = TINY_STAR.repository
    write_files(hub.folder, TINY_STAR)
    (hub.folder / "tiny-star.pth").rename(hub.folder / "star-new.pth")
    result = machine.star("download", "tiny-text", endpoint=hub.url)
    assert result.exit_code == 0
    assert (
        "star-new.pth"
        in json.loads((Path(result.stdout.strip()) / "config.json").read_text())["provenance"][
            "converted_from"
        ].values()
    )
    assert "warning: the text tower is not in the folder" in result.stderr
    (hub.folder / "star-newer.pth").write_bytes(b"another")
    asked = machine.star("download", "tiny-text", "--force", endpoint=hub.url)
    assert asked.exit_code == 1
    assert "is not known; it has star-new.pth, star-newer.pth" in asked.stderr


def test_no_network_says_which_files_to_place_where(machine: Machine) -> None:
    result = machine.star("download", "tiny-var", endpoint="http://127.0.0.1:9")
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: tiny-var.pth: the hub at http://127.0.0.1:9 cannot be reached: ")
    assert "get tiny-var.pth, vae_ch160v4096z32.pth of FoundationVision/var by other means" in hint
    assert "`star weights convert tiny-var.pth vae_ch160v4096z32.pth --as tiny-var`" in hint


def test_switched_off_network_says_so(machine: Machine) -> None:
    result = machine.star("download", "tiny-var", offline=True)
    assert result.stderr.startswith("error: tiny-var.pth: not in the hub's cache, and the network is switched off\n")


def test_token_is_given_and_its_lack_is_said(hub: Hub, machine: Machine) -> None:
    hub.token = "hf_secret"
    without = machine.star("download", "tiny-var", endpoint=hub.url)
    assert without.exit_code == 1
    assert "the hub has no repository FoundationVision/var, or shows it to named users alone" in without.stderr
    assert "HF_TOKEN" in without.stderr
    machine.monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert machine.star("download", "tiny-var", endpoint=hub.url).exit_code == 0
