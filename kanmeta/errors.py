"""Every error kanmeta raises on purpose: what was given, what was expected, what to do next.

All derive from :class:`KanMetaError` and from the built-in exception a caller would expect, so that
``except ValueError`` keeps working for code that does not know kanmeta.
"""

__all__ = [
    "AdapterError",
    "AlreadyConvertedError",
    "BrokenLayerError",
    "CheckpointError",
    "CoefficientWriteError",
    "CorruptCheckpointError",
    "ExecutionError",
    "ForeignCheckpointError",
    "KanMetaError",
    "LargerModelWarning",
    "LayoutError",
    "ModelMismatchError",
    "NothingToConvertError",
    "PlainModelWarning",
    "PlanError",
    "SharingError",
    "SkippedLayerWarning",
    "VersionError",
    "WrappedModelError",
]


class KanMetaError(Exception):
    """Base class of all kanmeta errors."""


class LayoutError(KanMetaError, ValueError):
    """A tensor's shape contradicts the layout an adapter declares for it."""


class BrokenLayerError(LayoutError):
    """A layer of a known kind that cannot be converted, because of a fault of the library."""


class AdapterError(KanMetaError, ValueError):
    """An adapter is declared inconsistently, or two adapters have one name."""


class PlanError(KanMetaError, ValueError):
    """The arguments of ``convert`` do not fit the model (an unknown layer, say)."""


class NothingToConvertError(PlanError, LookupError):
    """No layer of the model is one that an adapter knows."""


class AlreadyConvertedError(PlanError):
    """A layer that was to be converted is converted already."""


class WrappedModelError(KanMetaError, TypeError):
    """The model is wrapped (DDP, FSDP, ``torch.compile``, TorchScript): convert what is inside."""


class SharingError(KanMetaError, RuntimeError):
    """A meta-learner that layers of this model use is not registered in this model."""


class CoefficientWriteError(KanMetaError, RuntimeError):
    """Something tried to write to a generated coefficient tensor, where the write would be lost."""


class ExecutionError(KanMetaError, RuntimeError):
    """A layer cannot run in the mode of execution that was asked for."""


class CheckpointError(KanMetaError, ValueError):
    """Base class of everything that can be wrong with a checkpoint file."""


class CorruptCheckpointError(CheckpointError):
    """The file is truncated or damaged."""


class ForeignCheckpointError(CheckpointError):
    """The file is not one that ``kanmeta.save`` wrote."""


class VersionError(CheckpointError):
    """The file was written in a newer format than this version of kanmeta can read."""


class ModelMismatchError(CheckpointError):
    """The file belongs to another model than the one it is being loaded into."""


class LargerModelWarning(UserWarning):
    """The conversion makes the model larger instead of smaller."""


class SkippedLayerWarning(UserWarning):
    """A layer that looks like one of a KAN library was not converted."""


class PlainModelWarning(UserWarning):
    """A method of the library made layers of coefficients that no prompts can stand for."""
