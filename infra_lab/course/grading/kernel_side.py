"""What runs inside a graded notebook's kernel, before its first cell."""

import sys
from pathlib import Path
from typing import Any


def limit_writes_at_start(ipython_folder: Path, max_characters: int) -> None:
    """Have a kernel with this $IPYTHONDIR call `limit_writes` while it starts.

    Not in a cell: IPython puts the streams' methods back as they were when a cell began.
    """
    startup = ipython_folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    code = f"__import__({__name__!r}, fromlist=['']).limit_writes({max_characters})\n"
    (startup / "00-limit-writes.py").write_text(code, encoding="utf-8")


def limit_writes(max_characters: int) -> None:
    """Cut each single write to stdout or stderr just above what a notebook may say in all.

    The budget itself is kept outside of the kernel; this only spares both sides a message of a gigabyte.
    """
    kind = type(sys.stdout)
    write = kind.write

    def cut(self: Any, text: str) -> int:
        write(self, text[: max_characters + 1] if len(text) > max_characters else text)
        return len(text)

    kind.write = cut  # type: ignore[method-assign]
