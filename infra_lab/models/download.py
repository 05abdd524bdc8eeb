"""One file over HTTP(S): resumed where it was cut, checked at the end, never half there.

The bytes go to NAME.partial; only a file of the right size and SHA-256 is renamed to NAME. A cut connection is resumed
with a Range request, in this run or in a later one.
"""

import errno
import hashlib
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from infra_lab.errors import DownloadError

CHUNK_BYTES = 1 << 20
ATTEMPTS = 4
TIMEOUT_S = 60.0
Progress = Callable[[int, int], None]
"""Told bytes done and bytes in total."""


def download(url: str, target: Path, *, num_bytes: int, sha256: str, progress: Progress, wait_s: float = 1.0) -> None:
    """Fetch `url` to `target`, going on from a `.partial` file if there is one.

    Raises DownloadError if the server cannot be reached after several attempts, if the disk is full, or if the content
    is not what was expected (then nothing is kept).
    """
    partial = target.with_name(target.name + ".partial")
    check_free_disk(target.parent, num_bytes - (partial.stat().st_size if partial.exists() else 0))
    for attempt in range(ATTEMPTS):
        try:
            _append(url, partial, num_bytes, progress)
            break
        except (urllib.error.URLError, TimeoutError, ConnectionError, _CutError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise DownloadError(f"{url} answered {error.code} {error.reason}") from error
            if attempt == ATTEMPTS - 1:
                done = partial.stat().st_size if partial.exists() else 0
                raise DownloadError(
                    f"{url} could not be fetched ({error}); {done:,} of {num_bytes:,} bytes are kept in {partial}, "
                    "and the same command goes on from there"
                ) from error
            time.sleep(wait_s * 2**attempt)
    verify(partial, num_bytes=num_bytes, sha256=sha256)
    os.replace(partial, target)


class _CutError(Exception):
    """The connection ended before the file did."""


def _append(url: str, partial: Path, num_bytes: int, progress: Progress) -> None:
    done = partial.stat().st_size if partial.exists() else 0
    if done > num_bytes:
        partial.unlink()
        done = 0
    if done == num_bytes:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        if done and response.status != 206:  # this server sends it all again
            done = 0
        with disk_errors(partial, num_bytes), partial.open("ab" if done else "wb") as file:
            while data := response.read1(CHUNK_BYTES):
                file.write(data)
                done += len(data)
                progress(done, num_bytes)
                if done > num_bytes:
                    break
    if done < num_bytes:
        raise _CutError(f"the connection ended after {done:,} of {num_bytes:,} bytes")


def verify(path: Path, *, num_bytes: int, sha256: str) -> None:
    """Raise DownloadError, and delete the file, unless it has this size and SHA-256."""
    actual = path.stat().st_size
    digest = sha256_of(path) if actual == num_bytes else ""
    if digest != sha256:
        path.unlink()
        what = f"SHA-256 {digest}, expected {sha256}" if digest else f"{actual:,} bytes, expected {num_bytes:,}"
        raise DownloadError(f"{path.name} is not the file that was expected ({what}); it was deleted: fetch it again")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_to_partial(source: BinaryIO, target: Path, *, num_bytes: int, sha256: str) -> None:
    """Write a stream to `target`, which appears only if size and SHA-256 are right."""
    check_free_disk(target.parent, num_bytes)
    # Two processes may do this at once: each has a file of its own, and the last rename wins with the same content.
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with disk_errors(partial, num_bytes), partial.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK_BYTES)
            file.flush()
            os.fsync(file.fileno())
        verify(partial, num_bytes=num_bytes, sha256=sha256)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def check_free_disk(folder: Path, num_bytes: int) -> None:
    """Raise DownloadError if the folder's disk has less than `num_bytes` left."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise DownloadError(
            f"{folder} has {free:,} bytes free and {num_bytes:,} are needed; make room, or set INFRA_LAB_CACHE to another disk"
        )


@contextmanager
def disk_errors(path: Path, num_bytes: int) -> Iterator[None]:
    """Say what a full disk means here."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DownloadError(
            f"the disk of {path.parent} is full ({num_bytes:,} bytes are needed in all); make room, or set INFRA_LAB_CACHE"
        ) from error
