"""Capturing what a function launches on a GPU, to launch all of it at once later (CUDA graphs).

A decode step of a small batch is some hundred kernels of a few microseconds each: to launch them one by one from Python takes
longer than to compute them. A graph holds them with their arguments, so its replay reads and writes the same addresses as the
captured run did. Inputs must therefore be copied into buffers that stay, and nothing in the function may depend on a number
that lies on the GPU, or wait for it.
"""

from collections.abc import Callable

import torch


class GraphCapture:
    """Captures functions on one device. Their graphs share a memory pool, so that only one may run at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, function: Callable[[], object]) -> Callable[[], None]:
        """Run the function once, capture a second run, and return what replays it on the caller's stream.

        Whoever captures the largest function first has the others live in its memory. What the pool gave to one function's
        intermediate results holds anything after another one's replay. Raises RuntimeError for what cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                function()  # compiles kernels, and lets libraries set themselves up: neither is possible during capture
                # thread_local: what other threads do on the GPU meanwhile does not spoil the capture
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    function()
            torch.cuda.current_stream().wait_stream(self._stream)
        return graph.replay
