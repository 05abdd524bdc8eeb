"""A server in a process of its own, as the one who measures sees it."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import psutil

from infra_lab.errors import InfraLabError

_STOP_S = 20.0


@dataclass(frozen=True, slots=True)
class Host:
    """A process that listens on 127.0.0.1."""

    port: int
    pid: int

    def rss_bytes(self) -> int:
        """Memory it has resident."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def cpu_s(self) -> float:
        """CPU time it has used."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)


@contextmanager
def host(*arguments: str) -> Iterator[Host]:
    """Run one of `infra_lab.bench.load.hosts` until the end of the block. Raises InfraLabError if it does not start."""
    command = [sys.executable, "-m", "infra_lab.bench.load.hosts", *arguments]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise InfraLabError(f"{' '.join(command)} did not start:\n{_end_of(log)}")
            yield Host(**json.loads(line))
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def direct_ttft_s(prompt: str, num_requests: int) -> list[float]:
    """Times to the first delta of the engine without a server, measured in a process of its own."""
    command = [sys.executable, "-m", "infra_lab.bench.load.hosts", "direct", prompt, str(num_requests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InfraLabError(f"the engine could not be measured:\n{done.stderr[-2000:]}")
    times_s: list[float] = json.loads(done.stdout.splitlines()[-1])
    return times_s


def _end_of(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read()[-2000:].decode(errors="replace")
