"""A module of a library is imported without its package, and leaves no trace for whoever imports the package later."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from star_cli.models.libraries import import_alone

PACKAGE = {
    "heavy_parts/__init__.py": "raise AssertionError('not to be run')",
    "heavy_parts/useful.py": "from .helper import ANSWER",
    "heavy_parts/helper.py": "ANSWER = 42",
    "lighter_parts/__init__.py": "RAN = True",
    "lighter_parts/useful.py": "from . import RAN",
}


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in PACKAGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("libraries")
def test_module_comes_without_what_its_package_imports() -> None:
    assert import_alone("heavy_parts.useful", "heavy_parts").ANSWER == 42
    assert not [name for name in sys.modules if name.startswith("heavy_parts")]
    with pytest.raises(AssertionError, match="not to be run"):
        import heavy_parts  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.usefixtures("libraries")
def test_package_that_is_loaded_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import lighter_parts  # type: ignore[import-not-found]

    assert import_alone("lighter_parts.useful", "lighter_parts").RAN
    assert sys.modules["lighter_parts"] is lighter_parts


def test_missing_library_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="no_such_library"):
        import_alone("no_such_library.useful", "no_such_library")


LOAD = """
import json, sys
from star_cli import StarPipeline
StarPipeline.from_pretrained(sys.argv[1], device="cpu")
print(json.dumps(sorted(name for name in sys.modules if "." not in name or name == "torch._dynamo")))
"""


def test_loading_a_model_imports_no_compiler_and_no_image_towers(tiny_model_folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(tiny_model_folder)], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(run.stdout))
    assert "torch" in loaded
    assert not loaded & {"torch._dynamo", "sympy", "open_clip", "torchvision", "timm", "transformers"}
