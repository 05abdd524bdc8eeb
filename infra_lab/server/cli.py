"""`infra-lab serve`; the main command registers it."""

from pathlib import Path
from typing import Annotated

import typer

from infra_lab.console import readable_errors

_NAMES = typer.Option(help="What clients call the model; may be given several times. Default: --model.")


def serve(
    model: Annotated[str, typer.Option(help="tiny, smollm2-135m, a Hugging Face folder, or a .gguf file.")] = "tiny",
    served_model_name: Annotated[list[str] | None, _NAMES] = None,
    host: Annotated[str, typer.Option(help="Other machines can reach it if this is not 127.0.0.1.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Lines of: name key [priority=N] [rpm=N] [tpm=N]. Also: INFRA_LAB_API_KEY.")
    ] = None,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="Let other machines in without a key.")
    ] = False,
    isolate_keys: Annotated[bool, typer.Option(help="Give each key a prefix cache of its own.")] = False,
    max_waiting: Annotated[int, typer.Option(help="Sequences that may wait; more get 429.")] = 256,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="Default: the model's context.")] = None,
    max_body_bytes: Annotated[int, typer.Option(help="A larger request gets 413.")] = 4 << 20,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="Of each key that sets no limit of its own.")
    ] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="Prompt and output tokens, likewise.")] = None,
    request_timeout: Annotated[float | None, typer.Option(help="Seconds that a request may take.")] = None,
    chunk_tokens: Annotated[int, typer.Option(help="Tokens of a stream's event, at least.")] = 1,
    chunk_ms: Annotated[float | None, typer.Option(help="An event is sent when its first token is this old.")] = None,
    drain: Annotated[float, typer.Option(help="Seconds for running requests to finish after SIGTERM.")] = 30.0,
    linger: Annotated[float, typer.Option(help="Seconds of 503 after SIGTERM, for load balancers to notice.")] = 0.0,
    log_prompts: Annotated[bool, typer.Option(help="Write prompts into the request log.")] = False,
    device: str = "auto",
    dtype: str = "auto",
    quantization: Annotated[str | None, typer.Option(help="int8, rtn-int4-g32, ...")] = None,
    kv_dtype: Annotated[str, typer.Option(help="auto, int8 or fp8: what the KV cache is stored in.")] = "auto",
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of prompt and output together.")] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Sequences that run at once.")] = 64,
    policy: Annotated[
        str, typer.Option(help="How requests are batched: chunked-prefill, prefix-aware, priority, static, ...")
    ] = "chunked-prefill",
    prefix_index: Annotated[
        str, typer.Option(help="How cached prefixes are found: hash, by whole blocks, or radix, to the token.")
    ] = "hash",
    max_batched_tokens: Annotated[int | None, typer.Option(help="Tokens of one step; otherwise 512 or more.")] = None,
    num_kv_blocks: Annotated[int | None, typer.Option(help="Size of the KV cache, in blocks of 16 tokens.")] = None,
) -> None:
    """Serve a model with OpenAI's API and the Open Inference Protocol, until SIGTERM or Ctrl-C."""
    with readable_errors():
        from infra_lab.server.config import ServerConfig
        from infra_lab.server.keys import load_keys
        from infra_lab.server.run import serve as run_server

        config = ServerConfig(
            api_keys=load_keys(api_key_file),
            isolate_keys=isolate_keys,
            max_waiting=max_waiting,
            max_prompt_tokens=max_prompt_tokens,
            max_body_bytes=max_body_bytes,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            request_timeout_s=request_timeout,
            chunk_tokens=chunk_tokens,
            chunk_ms=chunk_ms,
            drain_s=drain,
            linger_s=linger,
            log_prompts=log_prompts,
        )
        run_server(
            model,
            served_model_names=served_model_name or (),
            host=host,
            port=port,
            config=config,
            insecure_no_auth=insecure_no_auth,
            engine_settings={
                "device": device,
                "dtype": dtype,
                "quantization": quantization,
                "kv_dtype": kv_dtype,
                "max_model_len": max_model_len,
                "max_num_seqs": max_num_seqs,
                "policy": policy,
                "prefix_index": prefix_index,
                "max_batched_tokens": max_batched_tokens,
                "num_kv_blocks": num_kv_blocks,
            },
        )
