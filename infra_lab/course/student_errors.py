"""An exception in a student's code, as one line: what it was, and the line of the notebook that raised it."""

import linecache
import traceback

NOT_WRITTEN = "not written yet"


def describe_error(error: BaseException) -> str:
    """Say what went wrong and where; the untouched stub's NotImplementedError is called what it is."""
    error = _inner(error)
    if isinstance(error, NotImplementedError) and not str(error):
        return NOT_WRITTEN
    if isinstance(error, SystemExit):
        return f"the code called exit({error.code!r})"
    said = str(error).strip()
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"{what}{_where(error)}"


def is_untouched_stub(error: BaseException | None) -> bool:
    """Whether this is the exception that an exercise begins with."""
    return error is not None and isinstance(inner := _inner(error), NotImplementedError) and not str(inner)


def _inner(error: BaseException) -> BaseException:
    """Return what a kernel raised: Triton's interpreter wraps it in an error of its own."""
    while type(error).__name__ == "InterpreterError" and error.__cause__ is not None:
        error = error.__cause__
    return error


def _where(error: BaseException) -> str:
    """Name the last line that lies in a cell: below it there is only library code."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "ipykernel_" in frame.filename or frame.filename.startswith("<ipython-input"):
            line = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
            return f" (line {frame.lineno} of the cell with `{frame.name}`: {line})" if frame.name != "<module>" else ""
    return ""
