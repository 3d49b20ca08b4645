"""The model folder: `config.json`, two safetensors files, the text encoder, the model card.

Everything the folder says is checked at the door: `read_model_folder` checks the config and that each file is there
and whole in length; each `load_` checks names, shapes and SHA-256 before the first tensor is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from star_cli.errors import ModelFolderError, OptionError
from star_cli.generation.options import SamplingOptions
from star_cli.models.config import TextEncoderConfig, TransformerConfig, VQVAEConfig
from star_cli.models.schedule import ScaleSchedule

if TYPE_CHECKING:
    import torch

    from star_cli.checkpoints.tensors import FileRecord
    from star_cli.models.text import TextEncoder
    from star_cli.models.transformer import StarTransformer
    from star_cli.models.vqvae import MultiScaleVQVAE
