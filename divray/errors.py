"""The errors that divray raises on purpose, and the exit code each one ends the command with."""

from __future__ import annotations


class DivrayError(Exception):
    """Base of every error that is shown as one line instead of a traceback."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        """The message alone: Ray Data adds words of its own to ``args``."""
        return self.message


def own_error(error: BaseException) -> BaseException:
    """A worker's own error, without Ray's wrappers around it; any other error unchanged."""
    while type(error).__module__.startswith("ray.") and (cause := getattr(error, "cause", None) or error.__cause__):
        error = cause
    return error


class InputError(DivrayError):
    """The user's input is wrong: ``where`` is the file or argument at fault, ``field`` the key, row or column in it, ``problem`` what is
    wrong, and ``mend`` what to change.  Most are raised before anything runs or is written."""

    exit_code = 2

    def __init__(self, where: str, field: str, problem: str, mend: str) -> None:
        self.where, self.field, self.problem, self.mend = where, field, problem, mend
        place = f"{where}: {field}" if field else where
        super().__init__(f"{place}: {problem}. {mend}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str, str]]:
        """Pickle all four fields, so that a worker's error reaches the driver complete."""
        return type(self), (self.where, self.field, self.problem, self.mend)


class ResourceError(DivrayError):
    """The cluster can never give what the configuration asks for."""

    exit_code = 3


class EngineError(DivrayError):
    """The LLM engine died at every try, and the message has the engine's own cause; or some of its completions were lost."""

    exit_code = 4
