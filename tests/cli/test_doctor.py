"""`star doctor`: what is there, what is used and why, and whether the model is sound."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import pytest
import torch

import star_cli
from star_cli import hardware
from star_cli.checkpoints import known
from star_cli.errors import OptionError
from star_cli.evaluation import precision
from tests.cli.command import Star


@pytest.fixture
def shipped(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model in the place of the shipped one."""
    path = tmp_path / "weights" / known.SHIPPED
    shutil.copytree(tiny_model_folder, path)
    monkeypatch.setattr(known, "shipped_root", lambda: path.parent)
    return path


def test_sound_installation_has_no_problems(star: Star, shipped: Path) -> None:
    result = star("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    for line in (
        f"  star: {star_cli.__version__}",
        f"  torch: {torch.__version__.partition('+')[0]}",
        "problems: none",
    ):
        assert line in result.stdout


def test_json_says_what_is_used_and_why(star: Star, shipped: Path) -> None:
    told = json.loads(star("doctor", "--json").stdout)
    assert told["versions"]["python"] == platform.python_version()
    assert told["machine"]["cores"] >= 1
    assert told["model"] | {"verified": True, "folder": str(shipped)} == told["model"]
    assert told["used"]["device"] in ("cpu", "cuda", "mps")
    assert told["used"]["device_because"]
    assert told["used"]["dtype_because"]
    assert told["problems"] == []


def test_flipped_byte_in_the_default_model_is_a_problem(star: Star, shipped: Path) -> None:
    file = shipped / "vqvae.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    result = star("doctor", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert told["model"]["verified"] is False
    assert told["problems"][0].startswith("vqvae.safetensors: hash is ")


def test_file_that_drawing_would_refuse_is_a_problem(star: Star, shipped: Path) -> None:
    (shipped / "text_encoder" / "notes.txt").write_text("a stranger")
    told = json.loads(star("doctor", "--json").stdout)
    assert told["model"]["verified"] is False
    assert told["problems"] == [
        "text_encoder/notes.txt is in the folder, but not among the files of the config",
    ]


def test_weights_of_another_model_are_a_problem(star: Star, shipped: Path) -> None:
    config = json.loads((shipped / "config.json").read_text())
    config["transformer"]["depth"] += 1
    (shipped / "config.json").write_text(json.dumps(config))
    result = star("doctor")
    assert result.exit_code == 1
    assert "transformer.safetensors: missing blocks.2." in result.stdout


def test_the_users_own_defaults_are_what_is_used(
    star: Star, shipped: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAR_DTYPE", "bfloat16")
    monkeypatch.setenv("STAR_DEVICE", "cpu")
    monkeypatch.setenv("STAR_MODEL", str(tiny_model_folder))
    told = json.loads(star("doctor", "--json").stdout)
    assert (told["used"]["dtype"], told["used"]["dtype_because"]) == ("bfloat16", "STAR_DTYPE says so")
    assert told["used"]["device_because"] == "STAR_DEVICE says so"
    assert told["model"]["folder"] == str(tiny_model_folder)
    monkeypatch.setenv("STAR_MODEL", "nope")
    assert "problems: no model is called 'nope'" in star("doctor").stdout


def test_missing_default_model_is_a_problem(star: Star, shipped: Path) -> None:
    shutil.rmtree(shipped)
    result = star("doctor")
    assert result.exit_code == 1
    assert "problems: no model is called 'star-icons'" in result.stdout


def test_gain_of_other_precisions_is_told_where_auto_is_float32(
    star: Star, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "measure_speedups", lambda: {"bfloat16": 2.345, "int8": None})
    assert json.loads(star("doctor", "--json").stdout)["precision"] == {"bfloat16_speedup": 2.3, "int8_speedup": None}
    monkeypatch.setattr(hardware, "choose_device", lambda wanted: (torch.device("cuda"), "there"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert json.loads(star("doctor", "--json").stdout)["precision"] == {}


def test_measured_gains_are_ratios() -> None:
    found = precision.measure_speedups()
    assert set(found) == {"bfloat16", "int8"}
    assert all(gain is None or gain > 0 for gain in found.values())


def test_processor_without_exact_int8_has_no_gain_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device, dtype: torch.dtype) -> None:
        raise OptionError("not exact")

    monkeypatch.setattr(precision, "check_int8", refuse)
    assert precision.measure_speedups()["int8"] is None
