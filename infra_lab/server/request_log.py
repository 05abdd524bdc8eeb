"""One line of JSON a request: who, what, how much, how long. No text of anybody's, unless the server was told to."""

import json
import logging
import sys
import time
from typing import Any

from infra_lab.server.context import Context

access_logger = logging.getLogger("infra_lab.server.requests")


def log_request(context: Context, *, method: str, route: str, status: int, duration_s: float) -> None:
    """Write the request's line, if anybody listens."""
    if not access_logger.isEnabledFor(logging.INFO):
        return
    line: dict[str, Any] = {
        "event": "request",
        "request_id": context.request_id,
        "method": method,
        "route": route,
        "status": status,
        "duration_s": round(duration_s, 6),
        "key": context.key.name if context.key else None,
    }
    generation = context.generation
    if generation is not None:
        line |= {
            "stream": context.is_stream,
            "prompt_tokens": generation.job.num_prompt_tokens,
            "cached_tokens": generation.num_cached_tokens,
            "output_tokens": generation.num_output_tokens,
            "ttft_s": None if generation.ttft_s is None else round(generation.ttft_s, 6),
            "finish_reasons": [choice.finish_reason for choice in generation.choices],
        }
        if generation.error is not None:
            line["error"] = generation.error.code
    if context.prompt is not None:
        line["prompt"] = context.prompt
    access_logger.info("%s", json.dumps(line))


class JsonLines(logging.Formatter):
    """Formats what is not JSON yet: the server's own messages, and uvicorn's."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        message = record.getMessage()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        head = {"time": moment, "level": record.levelname.lower()}
        if record.name == access_logger.name:
            return json.dumps(head)[:-1] + ", " + message[1:]
        fields: dict[str, Any] = {**head, "event": "log", "logger": record.name, "message": message}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def log_as_json() -> None:
    """Send the server's and uvicorn's log to stderr, a JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("infra_lab", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    logging.getLogger("uvicorn.access").disabled = True  # the request log says more
