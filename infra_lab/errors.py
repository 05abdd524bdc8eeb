"""Every error a user can meet: what was wrong, what was expected, and what to do next."""


class InfraLabError(Exception):
    """Base class of the errors that a user can cause and can mend."""


class ConfigError(InfraLabError, ValueError):
    """A setting that is impossible, or that contradicts another one."""


class InvalidRequestError(InfraLabError, ValueError):
    """A request that can never be served: its prompt, its parameters or its size."""


class ModelNotFoundError(InfraLabError, FileNotFoundError):
    """A model name that is not known, or a path where no model lies."""


class UnsupportedModelError(InfraLabError, ValueError):
    """A model whose architecture, option or quantization type the engine does not run."""


class CorruptModelError(InfraLabError, ValueError):
    """A model file that is damaged, truncated, or does not match its checksum or its configuration."""


class DownloadError(InfraLabError, OSError):
    """A download that could not be finished: no network, no disk space, wrong checksum."""


class MissingExtraError(InfraLabError, ImportError):
    """An optional dependency that is not installed; the message names the extra that brings it."""


class InvariantError(InfraLabError, AssertionError):
    """An internal count that does not add up; raised by the integrity checks, with the numbers."""


class QueueFullError(InfraLabError, RuntimeError):
    """The waiting queue has reached its admission limit; try again later."""
