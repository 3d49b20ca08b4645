"""Models known by name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from star_cli.checkpoints import known
from star_cli.checkpoints.known import cache_root, find_model, list_models, shipped_root
from star_cli.errors import ModelFolderError, ModelNotFoundError


@pytest.fixture
def shipped(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model as the only one that ships, named "small"."""
    monkeypatch.setattr(known, "shipped_root", lambda: tmp_path / "weights")
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "weights" / "small"))


def put_into_cache(folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder, cache_root() / "models" / name))


def test_name_finds_the_shipped_model(shipped: Path) -> None:
    assert find_model("small").path == shipped


def test_name_finds_a_cached_model(shipped: Path) -> None:
    cached = put_into_cache(shipped, "large")
    assert find_model("large").path == cached


def test_path_finds_a_folder_as_words_or_path(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_model(tiny_model_folder).path == tiny_model_folder
    assert find_model(str(tiny_model_folder)).path == tiny_model_folder
    monkeypatch.chdir(tiny_model_folder.parent)
    assert find_model("tiny").path == Path("tiny")


def test_name_wins_over_a_folder_here_and_dot_slash_is_the_folder(
    shipped: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    shutil.copytree(tiny_model_folder, tmp_path / "here" / "small")
    monkeypatch.chdir(tmp_path / "here")
    assert find_model("small").path == shipped
    assert find_model("./small").path == Path("small")


def test_shipped_model_wins_over_a_cached_one_of_its_name(shipped: Path) -> None:
    put_into_cache(shipped, "small")
    assert [model.path for model in list_models()] == [shipped]


def test_list_has_shipped_then_cached_models(shipped: Path) -> None:
    cached = [put_into_cache(shipped, name) for name in ("b", "a")]
    put_into_cache(shipped, ".b.unfinished")
    assert [model.path for model in list_models()] == [shipped, *reversed(cached)]


def test_damaged_model_is_told_and_left_out_of_the_list(shipped: Path) -> None:
    (put_into_cache(shipped, "bad") / "vqvae.safetensors").unlink()
    told: dict[Path, ModelFolderError] = {}
    assert [model.path for model in list_models(told.__setitem__)] == [shipped]
    ((path, error),) = told.items()
    assert path.name == "bad"
    assert "vqvae.safetensors: missing" in str(error)
    with pytest.raises(ModelFolderError):
        list_models()


@pytest.mark.parametrize("name", ["nothing", "", "../nothing", "/no/such/folder"])
def test_unknown_name_is_said_with_the_known_ones(shipped: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"no model is called '{name}', .* known: small") as caught:
        find_model(name)
    assert caught.value.hint


def test_home_of_nobody_is_a_folder_that_is_not_there(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFoundError, match="no model is called '~nobody-at-all'"):
        find_model("~nobody-at-all")
    monkeypatch.setenv("STAR_CACHE", "~nobody-at-all/x")
    assert [model.path for model in list_models()] == [shipped]


def test_file_is_no_model(shipped: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is a file, not a model folder"):
        find_model(shipped / "config.json")


def test_cache_is_in_the_home_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_root().name == "star-cache"
    monkeypatch.delenv("STAR_CACHE")
    assert cache_root() == Path.home() / ".cache" / "star-cli"


def test_checkout_ships_its_weights_folder() -> None:
    assert shipped_root() == Path(known.__file__).resolve().parents[2] / "weights"


def test_models_are_listed_without_torch() -> None:
    code = "import sys; from star_cli.checkpoints import known; known.list_models(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
