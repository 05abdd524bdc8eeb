"""Prometheus metrics under vLLM's names, so that its dashboards show this server, and the golden signals of HTTP.

Gauges and the cache's counters are read from the engine when somebody scrapes; everything else comes with the deltas.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra_lab.engine.outputs import OutputDelta
from infra_lab.server.loop_metrics import LoopCounter, LoopHistogram
from infra_lab.server.served import ServedEngine

if TYPE_CHECKING:
    from infra_lab.server.generation import Generation

_LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_LENGTHS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class ServerMetrics:
    """One server's metrics, in a registry of their own: two servers in a process do not mix."""

    def __init__(self, served: ServedEngine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(served))
        model = served.name

        def histogram(name: str, help_text: str, bounds: tuple[float, ...]) -> LoopHistogram:
            made = LoopHistogram(name, help_text, {"model_name": model}, bounds)
            self.registry.register(made)
            return made

        def counter(name: str, help_text: str) -> LoopCounter:
            made = LoopCounter(name, help_text, {"model_name": model})
            self.registry.register(made)
            return made

        self._prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of requests that got their first token.")
        self._output_tokens = counter("vllm:generation_tokens", "Tokens generated.")
        self._preemptions = counter("vllm:num_preemptions", "Times that a request lost its blocks to another one.")
        self._ttft = histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", _LATENCIES_S)
        self._itl = histogram("vllm:inter_token_latency_seconds", "Between two tokens of a sequence.", _TOKENS_S)
        self._tpot = histogram(
            "vllm:time_per_output_token_seconds", "A sequence's mean after its first token.", _TOKENS_S
        )
        self._e2e = histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token.", _LATENCIES_S)
        self._queue = histogram("vllm:request_queue_time_seconds", "From arrival to the first step.", _LATENCIES_S)
        self._prompt_length = histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", _LENGTHS)
        self._output_length = histogram("vllm:request_generation_tokens", "Tokens of an output.", _LENGTHS)
        successes = Counter(
            "vllm:request_success",
            "Sequences by how they ended.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._success = {
            reason: successes.labels(model, reason) for reason in ("stop", "length", "abort", "error")
        }  # all from the start: a rate needs a zero to rise from
        self.http_requests = Counter(
            "http_requests", "Responses.", ["method", "route", "status"], registry=self.registry
        )
        self.http_latency = Histogram(
            "http_request_duration_seconds",
            "From a request's head to the end of its response.",
            ["method", "route"],
            buckets=_LATENCIES_S,
            registry=self.registry,
        )
        self.http_in_flight = Gauge("http_requests_in_flight", "Requests being answered.", registry=self.registry)

    def saw(self, delta: OutputDelta, previous_token_s: float | None, new_preemptions: int) -> None:
        """Count what a step brought to a sample."""
        if new_preemptions:
            self._preemptions.inc(new_preemptions)
        if not delta.token_ids:
            return
        metrics = delta.metrics
        self._output_tokens.inc(len(delta.token_ids))
        if previous_token_s is None:
            if metrics.ttft_s is not None:
                self._ttft.observe(metrics.ttft_s)
            if metrics.queue_s is not None:
                self._queue.observe(metrics.queue_s)
            if delta.index == 0:
                self._prompt_tokens.inc(metrics.num_prompt_tokens)
                self._prompt_length.observe(metrics.num_prompt_tokens)
        elif metrics.last_token_s is not None and metrics.last_token_s > previous_token_s:
            self._itl.observe(metrics.last_token_s - previous_token_s)

    def ended(self, generation: "Generation") -> None:
        """Count how a job's sequences ended; one that was cut off while others had ended is an abort.

        What the engine refused has never begun, so it ends under no reason; the responses' statuses count it.
        """
        cut_reason = "error" if generation.error is not None and generation.error.status == 500 else "abort"
        for choice in generation.choices:
            if choice.finish_reason is not None or not generation.is_refused:
                self._success[choice.finish_reason or cut_reason].inc()
            metrics = choice.metrics
            if choice.finish_reason is None or metrics is None:
                continue
            self._output_length.observe(choice.num_tokens)
            if metrics.e2e_s is not None:
                self._e2e.observe(metrics.e2e_s)
            if metrics.tpot_s is not None:
                self._tpot.observe(metrics.tpot_s)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class EngineCollector(Collector):
    """Reads the engine at the moment of a scrape: a few counts, no copy, no lock."""

    def __init__(self, served: ServedEngine) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        """Yield the engine's gauges and counters."""
        scheduler = self._served.engine.core.scheduler
        blocks = scheduler.blocks
        usage = 1 - blocks.num_free_blocks / blocks.num_blocks
        gauges = (
            ("vllm:num_requests_running", "Sequences that run.", len(scheduler.running)),
            ("vllm:num_requests_waiting", "Sequences that wait.", len(scheduler.waiting)),
            ("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.", usage),
            ("vllm:gpu_cache_usage_perc", "The same under its older name.", usage),
        )
        for name, help_text, value in gauges:
            gauge = GaugeMetricFamily(name, help_text, labels=["model_name"])
            gauge.add_metric([self._served.name], value)
            yield gauge
        counters = (
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", blocks.stats.queried_tokens),
            ("vllm:prefix_cache_hits", "Those that it had.", blocks.stats.hit_tokens),
        )
        for name, help_text, value in counters:
            counter = CounterMetricFamily(name, help_text, labels=["model_name"])
            counter.add_metric([self._served.name], value)
            yield counter
