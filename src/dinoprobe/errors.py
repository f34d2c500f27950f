"""The one tree of errors.

A message has three parts: what was found and where, what was expected, what to do. Each class also
derives from the builtin that a caller would catch, says its exit code and pickles.
"""

from __future__ import annotations

EXIT_BUG = 1
EXIT_BAD_INPUT = 2
EXIT_NO_ACCESS = 3
EXIT_FAILURES = 4
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class DinoprobeError(Exception):
    """What every deliberate error of this package derives from."""

    exit_code = EXIT_BAD_INPUT


class ConfigurationError(DinoprobeError, ValueError):
    """An option, or a combination of options, that can not work."""


class DatasetError(DinoprobeError, ValueError):
    """A dataset that can not be used as it stands."""


class DatasetNotFoundError(DatasetError, FileNotFoundError):
    """Nothing is at the place that was given."""


class ImageError(DinoprobeError, ValueError):
    """One image that can not be used. `kind` is a short word for counting."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (str(self), self.kind)


class EncoderError(DinoprobeError, RuntimeError):
    """An encoder that can not be loaded or run."""


class EncoderNotFoundError(EncoderError, LookupError):
    """No encoder has this name."""


class AccessError(EncoderError, PermissionError):
    """The weights exist, and this user can not read them yet."""

    exit_code = EXIT_NO_ACCESS


class HubUnreachableError(AccessError, ConnectionError):
    """The hub can not be reached, and the cache does not hold the weights."""


class StoreError(DinoprobeError, RuntimeError):
    """A feature store that can not be read or written."""


class HeadError(DinoprobeError, ValueError):
    """Features or labels that a head can not be fitted on."""


class NonFiniteError(HeadError, ArithmeticError):
    """NaN or infinity among features."""


class FormatError(DinoprobeError, ValueError):
    """A saved file that is damaged, foreign, or of another version."""


class MismatchError(FormatError):
    """Two sides that must agree and do not; the message names both."""


class ServiceError(DinoprobeError, RuntimeError):
    """A service that ended itself, to be started again."""

    exit_code = EXIT_BUG


class MissingExtraError(DinoprobeError, ImportError):
    """An optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the extra '{extra}', which is not installed. "
            f"Install it with: pip install 'dinoprobe[{extra}]'"
        )
        self.feature = feature
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.feature, self.extra)
