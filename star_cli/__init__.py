"""Draw pictures from words with STAR (arXiv 2406.10797).

from star_cli import StarPipeline

image, = StarPipeline.from_pretrained()("a cat")
image.save("cat.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from star_cli.errors import StarError
    from star_cli.generated import GeneratedImage
    from star_cli.generation.options import SamplingOptions
    from star_cli.pipeline import StarPipeline

__version__ = "0.1.0"

__all__ = ["GeneratedImage", "SamplingOptions", "StarError", "StarPipeline", "__version__"]

_HOMES = {
    "GeneratedImage": "star_cli.generated",
    "SamplingOptions": "star_cli.generation.options",
    "StarError": "star_cli.errors",
    "StarPipeline": "star_cli.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `star --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
