"""A whole pipeline of tiny parts, built in milliseconds: nearly every test uses it, on the CPU, offline."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

# Before anything imports huggingface_hub, which reads them once: no test may reach the network or the user's cache.
_SCRATCH = tempfile.TemporaryDirectory(prefix="star-tests-")
os.environ["HF_HOME"] = _SCRATCH.name
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from torch import nn  # noqa: E402

from star_cli.checkpoints.writing import write_model_folder  # noqa: E402
from star_cli.generation.options import SamplingOptions  # noqa: E402
from star_cli.models.config import TextEncoderConfig, TransformerConfig, VQVAEConfig  # noqa: E402
from star_cli.models.schedule import ScaleSchedule  # noqa: E402
from star_cli.models.text_open_clip import save_open_clip_text  # noqa: E402
from star_cli.models.transformer import StarTransformer  # noqa: E402
from star_cli.models.vqvae import MultiScaleVQVAE  # noqa: E402
from star_cli.pipeline import StarPipeline  # noqa: E402
from tests.reference.summary import pytest_terminal_summary  # noqa: E402, F401

# The same examples on every machine, however slow it is, and no file of those that failed.
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")

TINY_VQVAE = VQVAEConfig(codebook_size=16, code_dim=8, channels=8, multipliers=(1, 2), blocks=1, patch=4, groups=4)
TINY_TRANSFORMER = TransformerConfig(
    depth=2, width=32, heads=2, codebook_size=16, code_dim=8, levels=4, text_width=32, mlp_ratio=2.0
)
TINY_TEXT = TextEncoderConfig(kind="open_clip", width=32, max_tokens=16)
TINY_SCHEDULES = {32: ScaleSchedule((1, 2, 4)), 64: ScaleSchedule((1, 2, 4, 8))}
TINY_SAMPLING = SamplingOptions(guidance=2.0, top_k=12, top_p=0.95)


def pytest_configure() -> None:
    torch.set_num_threads(1)  # threads cost tiny tensors more than they give, most of all on a busy machine
    torch.use_deterministic_algorithms(True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background


def pytest_unconfigure() -> None:
    _SCRATCH.cleanup()


@pytest.fixture(autouse=True)
def _own_user_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's home or caches, nor what another test left in its own."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("STAR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("STAR_CACHE", str(home / "star-cache"))
    (home / "star.toml").touch()
    monkeypatch.setenv("STAR_CONFIG", str(home / "star.toml"))


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with fixed random weights. Shared by all tests: change `own_model_folder` instead."""
    root = tmp_path_factory.mktemp("models")
    _save_tiny_text_tower(root / "text")
    return write_tiny_folder(root / "tiny", TINY_TRANSFORMER, root / "text")


def write_tiny_folder(
    path: Path,
    transformer: TransformerConfig,
    text: Path | None,
    text_config: TextEncoderConfig | None = TINY_TEXT,
) -> Path:
    """A model folder of fixed random weights, called as its path ends."""
    write_model_folder(
        path,
        name=path.name,
        transformer=_lively(lambda: StarTransformer(transformer)),
        vqvae=_lively(lambda: MultiScaleVQVAE(TINY_VQVAE)),
        text_encoder_folder=text,
        text_encoder_config=text_config,
        schedules=TINY_SCHEDULES,
        sampling=TINY_SAMPLING,
        licence="MIT",
        provenance={"data": "none: random weights"},
        model_card=f"# {path.name}\n\nRandom weights, for tests.\n",
    )
    return path


@pytest.fixture(scope="session")
def tiny_class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_model_folder`, but it draws the thousand classes."""
    root = tmp_path_factory.mktemp("classes")
    config = replace(
        TINY_TRANSFORMER,
        conditioning="class",
        cross_attention=False,
        modulation="class",
        position="learned",
        learned_positions=85,
    )
    return write_tiny_folder(root / "tiny-class", config, None, None)


@pytest.fixture(scope="session")
def tiny_stable_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_model_folder`, with a stable head for the scales from index 2 on."""
    root = tmp_path_factory.mktemp("stable")
    _save_tiny_text_tower(root / "text")
    config = replace(TINY_TRANSFORMER, stable_head=True, stable_blocks=1, stable_from=2)
    return write_tiny_folder(root / "tiny-stable", config, root / "text")


@pytest.fixture
def own_model_folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model folder that a test may damage."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "own"))


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_model_folder: Path) -> StarPipeline:
    """Width 32, two blocks, sides 1 2 4 (and 8), 16 codes; float32 on the CPU; draws 32 or 64 pixels."""
    return StarPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype="float32")


def _lively(make: Callable[[], Any]) -> Any:
    """Fixed weights, biases too, large enough that prompt, seed and place all change the tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                gain = 3.0 if name.startswith("head.") else 1.5
                fan_in = parameter[0].numel() if "codebook" not in name else 1
                parameter.normal_(0, gain / fan_in**0.5, generator=generator)
    return model


def _save_tiny_text_tower(folder: Path) -> None:
    from open_clip.transformer import TextTransformer

    text_cfg = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    tower = _lively(lambda: TextTransformer(**text_cfg, output_dim=16, act_layer=nn.GELU))
    save_open_clip_text(tower, {"embed_dim": 16, "vision_cfg": {}, "text_cfg": text_cfg}, folder)
