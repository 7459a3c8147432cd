"""The exceptions of this package. Messages name file, line or tensor, what was found, and what to do."""

from .peft import LoraDropError

__all__ = ["DataError", "FileError", "InputError", "Interrupted", "LoraDropError", "ModelError", "NotFiniteError",
           "UsageError"]


class UsageError(LoraDropError):
    """Settings or arguments that are wrong, or exclude each other."""


class DataError(LoraDropError):
    """Rows or labels that are wrong."""


class ModelError(LoraDropError):
    """A model's files that are wrong."""


class InputError(LoraDropError):
    """Any other input that is wrong, such as a damaged adapter."""


class FileError(LoraDropError, OSError):
    """A file that cannot be read or written."""


class NotFiniteError(LoraDropError, ArithmeticError):
    """A loss, gradient or weight that is infinite or NaN: training has diverged."""


class Interrupted(LoraDropError):
    """A run was cancelled before an epoch was evaluated, so there is no adapter."""
