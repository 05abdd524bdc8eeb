"""`/v1/models`: what is served here."""

from typing import Any

from fastapi import APIRouter

from infra_lab.server.prepare import check_model
from infra_lab.server.runtime import Runtime


def routes(runtime: Runtime) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["models"])
    served = runtime.served

    def model_object(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": served.created,
            "owned_by": "infra-lab",
            "root": served.name,
            "parent": None,
            "max_model_len": served.max_model_len,
        }

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """List the names that requests may use."""
        return {"object": "list", "data": [model_object(name) for name in served.names]}

    @router.get("/v1/models/{model:path}")
    async def get_model(model: str) -> dict[str, Any]:
        """Describe one of them."""
        check_model(model, runtime)
        return model_object(model)

    return router
