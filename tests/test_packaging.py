"""What the wheel carries, and that an installed one finds it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import star_cli

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout, offline."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (built,) = folder.glob("*.whl")
    return built


def files_below(folder: Path, pattern: str) -> set[str]:
    found = {path.relative_to(ROOT).as_posix() for path in folder.rglob(pattern) if path.is_file()}
    return {path for path in found if "__pycache__" not in path}


def test_wheel_carries_modules_recipes_and_weights(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    weights = {f"star_cli/{path}" for path in files_below(ROOT / "weights", "*")}
    assert inside == files_below(ROOT / "star_cli", "*") | weights
    assert {"star_cli/py.typed", "star_cli/weights/star-shapes/config.json"} <= inside
    assert any(name.startswith("star_cli/training/recipes/") and name.endswith(".toml") for name in inside)


def test_wheel_names_command_version_and_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(f"{info}/METADATA").decode()
        assert "star = star_cli.__main__:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert f"Version: {star_cli.__version__}\n" in metadata
    assert "License-Expression: MIT\n" in metadata


def test_installed_wheel_finds_its_weights(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "from star_cli.checkpoints.known import SHIPPED, find_model, shipped_root\n"
        "print(shipped_root())\n"
        "print(find_model(SHIPPED).path)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    weights = site / "star_cli" / "weights"
    assert found.stdout.split() == [str(weights), str(weights / "star-icons")]


def test_shipped_models_are_small_enough_to_ship() -> None:
    sizes = {
        folder.name: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for folder in (ROOT / "weights").iterdir()
    }
    assert max(sizes.values()) < 64_000_000, sizes
    assert sum(sizes.values()) < 90_000_000, sizes  # what a package index takes of one file is not much more


def test_every_import_of_the_package_is_declared() -> None:
    import ast

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [needs for name, needs in project["optional-dependencies"].items() if name != "dev"]
    declared = {
        need.split(">")[0].split("[")[0].lower() for needs in (project["dependencies"], *extras) for need in needs
    }
    called = {
        "pil": "pillow",
        "open_clip": "open_clip_torch",
        "accelerate": "accelerate",
        "torch_fidelity": "torch-fidelity",
    }
    imported = set()
    for path in (ROOT / "star_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).split(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
    foreign = {called.get(name.lower(), name) for name in imported - set(sys.stdlib_module_names) - {"star_cli"}}
    assert foreign <= declared
