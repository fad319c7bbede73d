"""What a user can mend: each error is one sentence, and a hint that says what to do next."""


class LLMError(Exception):
    """An error a user can cause and mend; commands print it without a traceback and exit with 2."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message if not hint else f"{message}\n  fix: {hint}")
        self.message = message
        self.hint = hint


class ConfigError(LLMError):
    """A setting or option that is unknown, malformed, or in conflict with another."""


class DataError(LLMError):
    """Text or rows of the user's that cannot be used as they are."""


class ArtifactError(LLMError):
    """A folder or file that is missing, damaged, or not what was asked for."""


class ExtensionError(LLMError):
    """A part that another package offers, which is not installed."""


class TrainingError(LLMError):
    """A run that cannot go on: diverged, out of memory, or not resumable as asked."""
