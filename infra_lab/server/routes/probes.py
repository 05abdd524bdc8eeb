"""`/health`: should this process be restarted? `/ready`: should it get requests? `/metrics`: how is it doing?"""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse

from infra_lab.server.runtime import Runtime


def engine_answer(runtime: Runtime, *, accepting: bool = False) -> Response:
    """200 if the engine moves (and, if `accepting`, requests are taken), else 503 and the reason."""
    if accepting and runtime.is_draining:
        return JSONResponse({"status": "draining", "in_flight": len(runtime.running)}, 503)
    trouble = runtime.trouble()
    if trouble is not None:
        return JSONResponse({"status": "stalled", **trouble}, 503)
    return JSONResponse({"status": "ready" if accepting else "ok"})


def routes(runtime: Runtime) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["probes"])

    @router.head("/health", include_in_schema=False, response_model=None)
    @router.get("/health", response_model=None)
    async def health() -> Response:
        """200 while the engine moves; 503 if it has work and does not. A server that drains is healthy."""
        return engine_answer(runtime)

    @router.head("/ready", include_in_schema=False, response_model=None)
    @router.get("/ready", response_model=None)
    async def ready() -> Response:
        """200 while requests are accepted; 503 while the server drains or its engine is stalled."""
        return engine_answer(runtime, accepting=True)

    @router.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(runtime.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
