"""The app: routes behind the gate, and one shape of error for all of them."""

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from infra_lab.server.api_error import ApiError, from_validation
from infra_lab.server.config import ServerConfig
from infra_lab.server.gate import Gate
from infra_lab.server.routes import chat, completions, models, open_inference, probes, tokenize
from infra_lab.server.runtime import Runtime
from infra_lab.server.served import ServedEngine


def build_app(served: ServedEngine, config: ServerConfig) -> FastAPI:
    """Connect the parts; `app.state.runtime` is what they share."""
    runtime = Runtime.of(served, config)
    app = FastAPI(title="Infra Lab", summary="LLM inference: OpenAI's API and the Open Inference Protocol.")
    app.state.runtime = runtime
    for module in (models, chat, completions, tokenize, open_inference, probes):
        app.include_router(module.routes(runtime))
    app.add_middleware(Gate, runtime=runtime)
    app.add_exception_handler(RequestValidationError, _raise_validation)
    app.add_exception_handler(HTTPException, _raise_http)
    return app


# The gate answers errors; these only translate what FastAPI raises on its own.


async def _raise_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    raise from_validation(error.errors())


async def _raise_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        raise ApiError(404, f"there is no {request.method} {request.url.path} here; see /docs", code="not_found")
    message = error.detail if isinstance(error.detail, str) else "the request was refused"
    raise ApiError(error.status_code, message, headers=error.headers)
