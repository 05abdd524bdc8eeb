"""The Open Inference Protocol (KServe V2) over REST, with Triton's `generate` and `generate_stream`.

The model has one input, `text_input` (BYTES, any shape: each element is a prompt), and one output of the same shape,
`text_output`. Sampling is set by the request's parameters, which have the names of `/v1/completions`.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed_version
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from pydantic import ValidationError
from starlette.responses import JSONResponse

from infra_lab.server.api_error import ApiError, from_validation, invalid
from infra_lab.server.context import context_of
from infra_lab.server.generation import Generation
from infra_lab.server.mailbox import Piece
from infra_lab.server.prepare import check_model, make_job
from infra_lab.server.routes.completions import DEFAULT_MAX_TOKENS, CompletionRequest, encode_all
from infra_lab.server.routes.probes import engine_answer
from infra_lab.server.runtime import Runtime
from infra_lab.server.sse import stream
from infra_lab.server.v2_tensors import parse_infer, write_infer

INPUT, OUTPUT, VERSION = "text_input", "text_output", "1"
HEAD_LENGTH = "Inference-Header-Content-Length"
JsonObject = Annotated[dict[str, Any], Body()]
NOT_SAMPLING = frozenset({"prompt", "stream", "stream_options", "echo", "n", "best_of", "logprobs", "model", "suffix"})


def routes(runtime: Runtime) -> APIRouter:
    """Return the routes; a model's are there with and without its version."""
    router = APIRouter(tags=["open inference protocol"])
    models = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")

    @router.get("/v2")
    async def server_metadata() -> dict[str, Any]:
        """Name and extensions of this server."""
        return {
            "name": "infra-lab",
            "version": installed_version("infra-lab"),
            "extensions": ["binary_tensor_data", "generate"],
        }

    @router.get("/v2/health/live", response_model=None)
    async def live() -> Response:
        """Whether the engine moves."""
        return engine_answer(runtime)

    @router.get("/v2/health/ready", response_model=None)
    async def ready() -> Response:
        """Whether requests are accepted."""
        return engine_answer(runtime, accepting=True)

    async def model_metadata(model: str, version: str = VERSION) -> dict[str, Any]:
        """Inputs and outputs of the model."""
        check(model, version)
        return {
            "name": model,
            "versions": [VERSION],
            "platform": "infra_lab",
            "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": OUTPUT, "datatype": "BYTES", "shape": [-1]}],
        }

    async def model_ready(model: str, version: str = VERSION) -> Response:
        """Whether the model takes requests."""
        check(model, version)
        return engine_answer(runtime, accepting=True)

    async def infer(request: Request, model: str, version: str = VERSION) -> Response:
        """Continue every element of `text_input`."""
        check(model, version)
        asked = parse_infer(await request.body(), request.headers.get(HEAD_LENGTH), known_outputs=[OUTPUT])
        prompts = asked.inputs.get(INPUT)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise invalid(f"the input {INPUT!r} must be a BYTES tensor with at least one text")
        parameters = asked.parameters | _from_input(asked.inputs.get("sampling_parameters"))
        generation = await start(request, _fields(prompts, parameters, is_stream=False), prompts)
        texts = [piece.text for piece in await generation.collect()]
        head = {"model_name": model, "model_version": version, "id": asked.id or context_of(request.scope).engine_id}
        body, head_length = write_infer(head, OUTPUT, texts, asked.shapes[INPUT], binary=asked.wants_binary)
        if not asked.wants_binary:
            return Response(body, media_type="application/json")
        return Response(body, media_type="application/octet-stream", headers={HEAD_LENGTH: str(head_length)})

    async def generate(request: Request, model: str, fields: JsonObject, version: str = VERSION) -> Response:
        """Continue one text."""
        check(model, version)
        text, parameters, head = _generate_request(fields, model, version)
        generation = await start(request, _fields([text], parameters, is_stream=False), [text])
        [piece] = await generation.collect()
        return JSONResponse({**head, OUTPUT: piece.text, "finish_reason": piece.finish_reason})

    async def generate_stream(request: Request, model: str, fields: JsonObject, version: str = VERSION) -> Response:
        """Continue one text; each event has what is new."""
        check(model, version)
        text, parameters, head = _generate_request(fields, model, version)
        context_of(request.scope).is_stream = True
        generation = await start(request, _fields([text], parameters, is_stream=True), [text])
        return await stream(generation, GenerateFormat(head), runtime.config.heartbeat_s)

    def check(model: str, version: str) -> None:
        check_model(model, runtime)
        if version != VERSION:
            raise ApiError(404, f"the model has the version {VERSION!r} only, not {version!r}", code="model_not_found")

    async def start(request: Request, fields: CompletionRequest, prompts: Sequence[str]) -> Generation:
        context = context_of(request.scope)
        token_ids = await encode_all(prompts, runtime, context, add_special_tokens=True)
        if runtime.config.log_prompts:
            context.prompt = "\n".join(prompts)
        job = await make_job(
            fields, token_ids, runtime, context, param=INPUT, default_max_tokens=DEFAULT_MAX_TOKENS, logprobs=None
        )
        return runtime.start(context, job, request.receive)

    for path in models:
        router.add_api_route(path, model_metadata, methods=["GET"])
        router.add_api_route(f"{path}/ready", model_ready, methods=["GET"], response_model=None)
        router.add_api_route(f"{path}/infer", infer, methods=["POST"], response_model=None)
        router.add_api_route(f"{path}/generate", generate, methods=["POST"], response_model=None)
        router.add_api_route(f"{path}/generate_stream", generate_stream, methods=["POST"], response_model=None)
    return router


class GenerateFormat:
    """Triton's stream: objects like the whole response, each with new text; no [DONE]."""

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = head

    def pieces(self, pieces: Sequence[Piece]) -> bytes:
        """An event a piece that has text, or ends."""
        return b"".join(self._event(piece) for piece in pieces if piece.text or piece.finish_reason is not None)

    def end(self, generation: Generation) -> bytes:
        """The connection's end says it."""
        return b""

    def error(self, error: ApiError) -> bytes:
        """An error in the protocol's shape."""
        return b"data: " + json.dumps({"error": error.message}).encode() + b"\n\n"

    def _event(self, piece: Piece) -> bytes:
        event: dict[str, Any] = {**self._head, OUTPUT: piece.text}
        if piece.finish_reason is not None:
            event["finish_reason"] = piece.finish_reason
        return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"


def _fields(prompts: Sequence[Any], parameters: Mapping[str, Any], *, is_stream: bool) -> CompletionRequest:
    sampling = {name: value for name, value in parameters.items() if name not in NOT_SAMPLING}
    try:
        fields = CompletionRequest.model_validate({**sampling, "prompt": list(prompts)})
    except ValidationError as error:
        raise from_validation([dict(one) for one in error.errors()]) from error
    fields.stream = is_stream
    return fields


def _generate_request(
    fields: Mapping[str, Any], model: str, version: str
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Text, parameters (beside the text, or in "parameters", as clients do either) and the head of the answers."""
    text, nested = fields.get(INPUT), fields.get("parameters") or {}
    if not isinstance(text, str) or not isinstance(nested, dict):
        raise invalid(f'the body must have "{INPUT}", a text, and may have "parameters", an object', INPUT)
    beside = {name: value for name, value in fields.items() if name not in (INPUT, "parameters", "id")}
    head: dict[str, Any] = {"model_name": model, "model_version": version}
    if fields.get("id") is not None:
        head["id"] = str(fields["id"])[:256]
    return text, beside | nested, head


def _from_input(elements: list[Any] | None) -> dict[str, Any]:
    """Triton's LLM backends take the sampling parameters as an input tensor that holds JSON."""
    if not elements:
        return {}
    try:
        parameters = json.loads(elements[0])
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(f"the input 'sampling_parameters' is not JSON: {error}") from error
    if not isinstance(parameters, dict):
        raise invalid("the input 'sampling_parameters' must hold a JSON object")
    return parameters
