"""From a chat to the prompt text, by the Jinja template that the model brings along.

A template is a program that came with a download, so it runs in jinja2's immutable sandbox: no attribute that leads to
Python's internals, no change to the values it is given, no range() beyond 100,000. It sees plain JSON values only, and
the functions that published templates expect (the set that transformers offers):

    raise_exception(message)   refuse the chat, for example when roles do not alternate
    strftime_now(format)       today's date
    value | tojson             JSON with non-ASCII characters as they are, and Python's separators
    {% break %} {% continue %} loop controls
    {% generation %}           marks what the assistant said, for training; renders its body
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from infra_lab.errors import InvalidRequestError, MissingExtraError, UnsupportedModelError
from infra_lab.models.chat_messages import plain_json, plain_messages

if TYPE_CHECKING:
    from jinja2 import Template


def render_chat_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Return the prompt text of a chat.

    template: Jinja source; variables: what else it may print, such as {"eos_token": "</s>"}.

    Raises InvalidRequestError for malformed messages and when the template refuses or fails, UnsupportedModelError if
    the template is not valid Jinja, MissingExtraError without jinja2.
    """
    compiled = _compile(template)
    from jinja2 import TemplateError

    values = {
        **{name: plain_json(value, name) for name, value in (variables or {}).items()},
        "messages": plain_messages(messages),
        "tools": None if tools is None else plain_json(tools, "tools"),
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        return compiled.render(values)
    except TemplateError as error:
        raise InvalidRequestError(f"the chat template refuses these messages: {error}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError) as error:
        raise InvalidRequestError(f"the chat template fails on these messages: {error!r}") from error


@lru_cache(maxsize=16)
def _compile(source: str) -> "Template":
    try:
        from jinja2 import TemplateSyntaxError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtraError("chat templates need jinja2: pip install jinja2") from error

    class GenerationTag(Extension):
        """`{% generation %} ... {% endgeneration %}` renders its body."""

        tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

        def parse(self, parser: Parser) -> list[nodes.Node]:
            """Return the nodes between the tags, in a scope of their own."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return [nodes.Scope(body).set_lineno(line)]

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise UnsupportedModelError(
            f"the model's chat template is not valid Jinja (line {error.lineno}: {error.message}); "
            "correct it in the model's files, or send a plain prompt"
        ) from error


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter writes HTML escapes (\u0026 for "&"), which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
