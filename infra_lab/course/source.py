"""Show the package's own code in a lesson, so that it cannot drift from what runs."""

import inspect
import textwrap
from pathlib import Path

from infra_lab.errors import ConfigError


def show_source(thing: object, *, docstring: bool = True) -> None:
    """Display the source of a function, method or class of this project, with the file and line where it stands.

    Raises ConfigError for something that has no Python source.
    """
    from IPython.display import Markdown, display

    try:
        lines, first = inspect.getsourcelines(thing)  # type: ignore[arg-type]
        path = Path(inspect.getsourcefile(thing) or "")  # type: ignore[arg-type]
    except (TypeError, OSError) as error:
        raise ConfigError(f"{thing!r} has no Python source to show ({error}); pass a function or a class") from None
    text = textwrap.dedent("".join(lines))
    if not docstring and (doc := getattr(thing, "__doc__", None)):
        text = _without_docstring(text, doc)
    root = Path(__file__).resolve().parents[2]
    place = path.resolve().relative_to(root) if path.resolve().is_relative_to(root) else Path(path.name)
    display(Markdown(f"`{place.as_posix()}`, from line {first}\n\n```python\n{text.rstrip()}\n```"))


def _without_docstring(text: str, doc: str) -> str:
    start = text.find('"""')
    end = text.find('"""', start + 3)
    if start < 0 or end < 0 or doc.split("\n", 1)[0].strip() not in text[start:end]:
        return text
    line_start = text.rfind("\n", 0, start) + 1
    return text[:line_start] + text[text.find("\n", end) + 1 :]
