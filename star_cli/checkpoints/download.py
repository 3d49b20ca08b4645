"""Fetching the authors' files from the hub into the hub's own cache, checked against the hashes the hub gives.

Endpoint, cache, token and offline mode are those of huggingface_hub: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlparse

from star_cli.checkpoints.published import PUBLISHED, PublishedModel
from star_cli.checkpoints.text_tower import wanted_text_files
from star_cli.errors import DownloadError, StarError

OnBytes = Callable[[str, int, int], None]
"""Told which file, bytes done, and bytes in all."""
PIECE = 2**20
WEIGHTS = (".pth", ".pt")


@dataclass(frozen=True)
class Downloaded:
    """The files of a published model, on this machine."""

    files: list[Path]
    """Transformer and VQVAE."""
    text_folder: Path | None
    origin: dict[str, Any] = field(default_factory=dict)
    """Repository's commit and hash of each file, for the provenance."""


def download(
    model: PublishedModel, *, file: str | None = None, fresh: bool = False, on_bytes: OnBytes | None = None
) -> Downloaded:
    """Fetch all files of a model that are not in the hub's cache yet; an interrupted file goes on where it stopped.

    Args:
        model: whose files.
        file: the transformer's file in the repository, for a model whose file is not known by name.
        fresh: fetch again what is already there.
        on_bytes: told while a file comes.
    Raises:
        DownloadError: no network, no such file, no permission, or bytes other than the hub says; tells which files to
            place where.
    """
    names = [file or model.transformer_file or _ask(model), model.vqvae_file]
    fetched = [_fetch(model, name, fresh, on_bytes) for name in names]
    text = [_fetch(model, name, fresh, on_bytes) for name in _text_names(model)]
    origin = {
        "commit": next((one.commit for one in fetched if one.commit), None),
        "official_sha256": {one.name: one.sha256 for one in fetched},
    }
    # All files of a repository lie in one folder of the cache, by their own paths.
    root = text[0].path.parents[len(Path(text[0].name).parts) - 1] if text else None
    folder = root / model.text_folder if root is not None and model.text_folder else None
    return Downloaded([one.path for one in fetched], folder, origin)


@dataclass(frozen=True)
class _Fetched:
    name: str
    path: Path
    sha256: str
    commit: str | None


# -- what there is ----------------------------------------------------------------------------------------------------


def _ask(model: PublishedModel) -> str:
    """The file of a model whose file name is not known: the only one left in the repository.

    Raises:
        DownloadError: there are several, or none; they are listed.
    """
    if not model.is_published:
        raise DownloadError(
            f"no weights of {model.name} are published",
            f"convert your own: `star weights convert FILE --as {model.name}`",
        )
    known = {name for other in PUBLISHED.values() for name in (other.transformer_file, other.vqvae_file)}
    names = [name for name in _list(model) if name.endswith(WEIGHTS) and name not in known]
    if len(names) == 1:
        return names[0]
    raise DownloadError(
        f"which file of {model.repository} is {model.name} is not known; "
        f"it has {', '.join(names) or 'no other weights'}",
        f"name it: `star weights download {model.name} --file FILE`; a wrong one is refused when it is converted",
    )


def _text_names(model: PublishedModel) -> list[str]:
    """Files of the text tower; none where the model reads no text, or the repository has no tower."""
    if model.text_folder is None:
        return []
    return wanted_text_files([name for name in _list(model) if name.startswith(f"{model.text_folder}/")])


def _list(model: PublishedModel) -> list[str]:
    """All files of the repository; offline, those in the cache."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if not constants.HF_HUB_OFFLINE:
        try:
            return sorted(HfApi().list_repo_files(model.repository))
        except Exception as error:
            if not _is_no_network(error):
                raise _explained(error, model, None) from error
    try:
        folder = Path(snapshot_download(model.repository, local_files_only=True))
    except Exception:  # nothing of it is in the cache
        return []
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# -- one file ---------------------------------------------------------------------------------------------------------


def _fetch(model: PublishedModel, name: str, fresh: bool, on_bytes: OnBytes | None) -> _Fetched:
    """One file of the repository, in the hub's cache."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.file_download import get_hf_file_metadata, repo_folder_name

    cached = try_to_load_from_cache(model.repository, name)
    if constants.HF_HUB_OFFLINE:
        if not isinstance(cached, str):
            raise DownloadError(f"{name}: not in the hub's cache, and the network is switched off", _place(model))
        return _of_cache(name, Path(cached))
    try:
        found = get_hf_file_metadata(hf_hub_url(model.repository, name))
        if found.etag is None:
            raise DownloadError(f"{name}: the hub gives no hash for it", _place(model))
        blob = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model.repository, repo_type="model"))
        blob = blob / "blobs" / found.etag
        if fresh:
            blob.unlink(missing_ok=True)
        is_here = blob.is_file()
        sha256 = _check(blob, found.etag, name) if is_here else _fetch_bytes(found, blob, name, on_bytes)
        path = Path(hf_hub_download(model.repository, name))  # finds the bytes in place, and names them
    except StarError:
        raise
    except Exception as error:  # httpx, the hub and the system each have their own families
        if isinstance(cached, str) and not fresh and _is_no_network(error):
            return _of_cache(name, Path(cached))
        raise _explained(error, model, name) from error
    return _Fetched(name, path, sha256, found.commit_hash)


def _fetch_bytes(found: Any, blob: Path, name: str, on_bytes: OnBytes | None) -> str:
    """Download beside the place in the cache; what is there of an interrupted download is kept and gone on with.

    huggingface_hub's own download starts a file over once its process ended, which at several gigabytes a file hurts.
    Gives the file's SHA-256.
    """
    from huggingface_hub.file_download import build_hf_headers, http_get  # type: ignore[attr-defined]

    headers = build_hf_headers()
    if urlparse(found.location).netloc != urlparse(_endpoint()).netloc:
        headers.pop("authorization", None)  # the token is for the hub, not for where it sends us
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.incomplete")
    with part.open("ab") as file:
        done = file.tell()
        if found.size is not None and done > found.size:
            file.truncate(done := 0)
        bar = _bar(name, on_bytes)
        http_get(found.location, file, resume_size=done, headers=headers, expected_size=found.size, tqdm_class=bar)
    try:
        sha256 = _check(part, blob.name, name)
    except DownloadError:
        part.unlink()  # going on with wrong bytes would never end well
        raise
    part.replace(blob)
    return sha256


def _check(path: Path, etag: str, name: str) -> str:
    """Hold a file against the hash by which the hub knows it: SHA-256 of a large file, git's SHA-1 of a small one.

    Returns:
        The file's SHA-256.
    Raises:
        DownloadError: it has another hash.
    """
    sha256 = found = _hash(path, hashlib.sha256())
    if len(etag) == 40:
        found = _hash(path, hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False))
    if len(etag) in (40, 64) and found != etag:  # a mirror may have another kind of tag, which tells nothing
        raise DownloadError(
            f"{name}: hash is {found[:12]}..., the hub says {etag[:12]}...",
            "download it again with --force; if that does not help, the mirror or the repository is at fault",
        )
    return sha256


def _of_cache(name: str, path: Path) -> _Fetched:
    """A file that was downloaded before: its place in the cache is named after its hash."""
    sha256 = _check(path, path.resolve().name, name)
    return _Fetched(name, path, sha256, path.parents[len(Path(name).parts) - 1].name)


def _hash(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return str(digest.hexdigest())


# -- words ------------------------------------------------------------------------------------------------------------


def _explained(error: Exception, model: PublishedModel, name: str | None) -> DownloadError:
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    what = f"{name}: " if name else ""
    if isinstance(error, GatedRepoError):
        return DownloadError(f"{what}{model.repository} is open to named users alone", "log in: set HF_TOKEN")
    if isinstance(error, RepositoryNotFoundError):
        return DownloadError(
            f"{what}the hub has no repository {model.repository}, or shows it to named users alone",
            "set HF_TOKEN if it is private; check HF_ENDPOINT if it is set",
        )
    if isinstance(error, EntryNotFoundError) and not _is_no_network(error):
        there = [other for other in _list(model) if other.endswith(WEIGHTS)]
        return DownloadError(
            f"{what}{model.repository} has no such file; it has {', '.join(there) or 'no weights'}",
            f"name the right one: `star weights download {model.name} --file FILE`",
        )
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    if _is_no_network(error):
        return DownloadError(f"{what}the hub at {_endpoint()} cannot be reached: {reason}", _place(model))
    return DownloadError(
        f"{what}cannot be downloaded: {reason}", f"try again: what came so far is kept. Or: {_place(model)}"
    )


def _place(model: PublishedModel) -> str:
    """Which files to get by other means, and what to do with them."""
    transformer = model.transformer_file or "TRANSFORMER.pth"
    text = f" --text-encoder {model.text_folder}" if model.text_folder else ""
    return (
        f"get {model.places} by other means, put them into one folder, and run there "
        f"`star weights convert {transformer} {model.vqvae_file} --as {model.name}{text}`"
    )


def _is_no_network(error: BaseException) -> bool:
    """Was nobody there to answer? httpx raises errors of its own, named by what happened."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, (LocalEntryNotFoundError, ConnectionError)) or bool(
        names & {"TransportError", "NetworkError", "TimeoutException"}
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _bar(name: str, on_bytes: OnBytes | None) -> Any:
    """What huggingface_hub takes for a progress bar."""

    class Bar:
        def __init__(self, *_: Any, total: int | None = None, initial: int = 0, **__: Any):
            self.done, self.total = initial, total or 0
            self.update(0)

        def update(self, size: int) -> None:
            self.done += size
            if on_bytes is not None:
                on_bytes(name, self.done, max(self.total, self.done))

        def close(self) -> None: ...

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

    return Bar
