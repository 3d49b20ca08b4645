"""The family of errors: what was wrong, what to do about it, and the exit code of a command that meets it."""


class StarError(Exception):
    """Parent of every error this package raises on purpose.

    Args:
        message: one sentence: what was given and what was expected.
        hint: one sentence: what to do about it; None where there is no way out.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.hint = hint


class OptionError(StarError, ValueError):
    """An argument, option or config field has a value that cannot be used."""

    exit_code = 2


class ShapeError(OptionError):
    """A tensor does not have the shape its place asks for."""


class ModelNotFoundError(OptionError):
    """No shipped, cached or local model has this name."""


class ModelFolderError(OptionError):
    """A model folder is incomplete, damaged, or holds something else than its config says."""


class TextEncoderError(OptionError):
    """A text encoder cannot be loaded, or gives something else than its config says."""


class RecipeError(OptionError):
    """An image carries no recipe, or one that cannot be repeated."""


class BatchInputError(OptionError):
    """Lines of a batch's input cannot be drawn.

    Args:
        message: one sentence over all of them.
        hint: what to do.
        problems: each line's number (0 for the input as a whole), and what is wrong with it.
    """

    def __init__(self, message: str, hint: str | None = None, problems: tuple[tuple[int, str], ...] = ()):
        super().__init__(message, hint)
        self.problems = problems


class OutputPathError(OptionError):
    """A picture cannot be written where it was asked for; known before any work."""


class OutputError(StarError):
    """Writing failed while working: a full disk, a folder that vanished."""


class TrainingError(StarError):
    """A training run cannot go on."""


class DataError(OptionError):
    """Training data is missing, empty, or not of a kind that is known."""


class BadImageError(StarError):
    """One picture that cannot be read. Training skips it, counts it and names it."""


class WeightsFileError(OptionError):
    """A file of published weights is damaged, is another one than was asked for, or asks to run code."""


class DownloadError(StarError):
    """Files cannot be fetched from the hub."""
