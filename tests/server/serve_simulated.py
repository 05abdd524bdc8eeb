"""A server in a process of its own, to be signalled: prints its port, and serves until it is told to stop."""

import asyncio
import sys

from infra_lab.server import ServedEngine, ServerConfig
from infra_lab.server.run import listen, run
from tests.server.live import simulated


def main(step_s: float, drain_s: float, linger_s: float) -> None:
    engine = simulated(step_s=step_s)
    with listen("127.0.0.1", 0) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        run(ServedEngine(engine, ("sim",)), ServerConfig(drain_s=drain_s, linger_s=linger_s), listener)
    assert not engine.core.has_work, "everything has ended before the engine is shut down"
    asyncio.run(engine.shutdown(drain=False))


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
