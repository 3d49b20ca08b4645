"""One model out of several: the mean of their transformers' weights (model soups, arXiv 2203.05482).

    python -m benchmarks.average_models fifth sixth seventh --shares 0.25 0.4875 0.2625 --out mine

The models are ends of one training that went on from each to the next. What each has drifted to by chance cancels out,
and the mean draws better than any of them, for nothing when it draws. All else is taken from the last model.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from star_cli.checkpoints.folder import CARD_FILE, TEXT_FOLDER, TRANSFORMER, ModelFolder
from star_cli.checkpoints.known import find_model
from star_cli.checkpoints.tensors import stored_dtype
from star_cli.checkpoints.writing import write_model_folder
from star_cli.errors import OptionError


@torch.no_grad()
def average_models(models: Sequence[ModelFolder], shares: Sequence[float], out: Path) -> ModelFolder:
    """Write the mean of some models.

    Args:
        models: of one architecture, with the same VQVAE and text encoder.
        shares: of each; they add up to 1.
        out: the new model folder.
    Raises:
        OptionError: shares that do not fit, or models that differ in more than the transformer's weights.
        ModelFolderError: `out` holds something else, or cannot be written.
    """
    if len(shares) != len(models) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise OptionError(f"{len(models)} models need as many shares that add up to 1, not {list(shares)}")
    last = models[-1]
    if any(_rest(model) != _rest(last) for model in models):
        raise OptionError("the models differ in more than the weights of their transformers")
    states = [model.load_transformer(dtype=torch.float32).state_dict() for model in models]
    mean = last.load_transformer(dtype=torch.float32)
    mean.load_state_dict(
        {name: sum(share * state[name] for share, state in zip(shares, states, strict=True)) for name in states[0]}
    )
    text = last.path / TEXT_FOLDER
    return write_model_folder(
        out,
        name=last.name,
        transformer=mean,
        vqvae=last.load_vqvae(dtype=torch.float32),
        text_encoder_folder=text if text.is_dir() else None,
        text_encoder_config=last.text_encoder,
        schedules=last.schedules,
        sampling=last.sampling,
        licence=last.licence,
        provenance={
            **last.provenance,
            "mean_of": {model.hash: share for model, share in zip(models, shares, strict=True)},
        },
        model_card=(last.path / CARD_FILE).read_text(encoding="utf-8"),
        dtype=getattr(torch, stored_dtype(list(last.weights(TRANSFORMER)))),
        default_resolution=last.default_resolution,
        words=last.words,
    )


def _rest(model: ModelFolder) -> tuple[object, ...]:
    files = {name: record for name, record in model.files.items() if not name.startswith("transformer")}
    return model.transformer, model.vqvae, model.schedules, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names or folders, the last one's settings are kept")
    parser.add_argument("--shares", nargs="+", type=float, required=True, help="of each model; together 1")
    parser.add_argument("--out", type=Path, required=True, help="the new model folder")
    options = parser.parse_args()
    print(average_models([find_model(model) for model in options.models], options.shares, options.out).path)


if __name__ == "__main__":
    main()
