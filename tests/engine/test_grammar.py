"""Constrained decoding: every output that ends is in its language, however it was batched, preempted, forked or repeated.

The oracles are `json`, `jsonschema`, `re` and Python's own parser; they know nothing of the masks.
"""

import ast
import json
import pickle
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import jsonschema
import pytest
import referencing.exceptions
import xgrammar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra_lab import LLM, SamplingParams
from infra_lab.engine.core import EngineCore
from infra_lab.engine.outputs import RequestOutput, SampleOutput
from infra_lab.engine.sampling import GrammarCompiler
from infra_lab.engine.sampling.grammar import BoundGrammar, GrammarMasks
from infra_lab.engine.sampling.schema_check import check_json_schema
from infra_lab.errors import InvalidRequestError, InvariantError, MissingExtraError
from infra_lab.grammar import Grammar
from infra_lab.models.fetch import resolve_model
from infra_lab.models.tokenizer import Tokenizer
from infra_lab.scheduler.request import Request

VOCAB_SIZE, EOS, END_OF_TURN, UNUSED = 272, 259, 257, 265
FEW_BLANKS = {ord(blank): -6.0 for blank in " \n\t"}
"""A small model at temperature 1.5 would spend its tokens on the blanks that JSON allows anywhere."""
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bb", None]}, "maxItems": 3},
        "home": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]},
    },
    "required": ["name", "age", "home"],
    "$defs": {"place": {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}}}},
}
ARITHMETIC = """
root ::= term ([+*] term)*
term ::= [1-9] [0-9]? | "(" root ")"
"""


def engine(**options: Any) -> LLM:
    return LLM("tiny", dtype="float32", device="cpu", **{"kv_cache_bytes": 16 << 20, "block_size": 8, **options})


@pytest.fixture(scope="module")
def llm() -> LLM:
    return engine()


def hot(grammar: Grammar, **options: Any) -> SamplingParams:
    defaults = {"temperature": 1.5, "seed": 0, "max_tokens": 120, "logit_bias": FEW_BLANKS}
    return SamplingParams(grammar=grammar, **{**defaults, **options})


def one(llm: LLM, grammar: Grammar, **options: Any) -> SampleOutput:
    return llm.generate("Return a", hot(grammar, **options))[0].samples[0]


def ended(llm: LLM, grammar: Grammar, num_samples: int, **options: Any) -> list[str]:
    """Texts of the samples that came to their end; the others must have run out of tokens, and nothing else."""
    params = [hot(grammar, n=8, seed=seed, **options) for seed in range(num_samples // 8)]
    outputs = llm.generate(["Return a"] * len(params), params)
    samples = [sample for output in outputs for sample in output.samples]
    assert {sample.finish_reason for sample in samples} <= {"stop", "length"}
    special = llm.tokenizer.special_token_ids
    for sample in samples:
        body = sample.token_ids[: -1 if sample.finish_reason == "stop" else None]
        assert not special.intersection(body), "a special token leaves no text, so the text is not what was masked"
        assert max(sample.token_ids) < llm.tokenizer.vocab_size
    return [sample.text for sample in samples if sample.finish_reason == "stop"]


# ---- every output is in the language ----


def test_json_objects(llm: LLM) -> None:
    texts = ended(llm, Grammar.json_object(), 160, logit_bias={**FEW_BLANKS, ord("}"): -4.0, ord('"'): 2.0})
    assert len(set(texts)) > 20
    assert all(isinstance(json.loads(text), dict) for text in texts)


def test_a_schema(llm: LLM) -> None:
    texts = ended(llm, Grammar.json_schema(PERSON), 240)
    assert len(texts) > 120
    assert len(set(texts)) > 100, "the mask leaves the choice to the model"
    for text in texts:
        jsonschema.validate(json.loads(text), PERSON)


def test_a_regex(llm: LLM) -> None:
    pattern = r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]( [A-Zäé你]+)?"
    texts = ended(llm, Grammar.regex(pattern), 80)
    assert len(set(texts)) > 30
    assert all(re.fullmatch(pattern, text) for text in texts)


def test_a_context_free_grammar(llm: LLM) -> None:
    texts = ended(llm, Grammar.ebnf(ARITHMETIC), 80)
    assert len(set(texts)) > 20
    assert any("(" in text for text in texts)
    for text in texts:
        assert isinstance(ast.parse(text, mode="eval").body, ast.Constant | ast.BinOp)


def small_schemas() -> st.SearchStrategy[Any]:
    """Schemas whose words are short, so that most outputs end; keywords come in all the combinations that pass the check."""
    bound = st.integers(-20, 20)

    def between(low: int, span: int, kind: str) -> dict[str, Any]:
        return {"type": kind, "minimum": low, "maximum": low + span}

    leaves = st.one_of(
        st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": ["null", "boolean"]}]),
        st.builds(between, bound, st.integers(0, 300), st.sampled_from(["integer", "number"])),
        st.builds(lambda n: {"type": "integer", "minimum": 0, "maximum": 90, "multipleOf": n}, st.integers(2, 7)),
        st.builds(
            lambda n, more: {"type": "string", "minLength": n, "maxLength": n + more},
            st.integers(0, 3),
            st.integers(0, 4),
        ),
        st.sampled_from(
            [{"type": "string", "pattern": p} for p in ("^a{2,3}$", "^(x|yy)z?$", "^[0-9]{2}:[0-5][0-9]$")]
        ),
        st.lists(st.sampled_from(["a", "é\n", 3, -1.5, None, True, [1], {"k": 0}]), min_size=1, max_size=3).map(
            lambda values: {"enum": values}
        ),
        st.sampled_from([{"const": [1, {"a": None}]}, {"const": 'quote " and \\'}, {"type": "string", "const": "x"}]),
    )

    def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        arrays = st.builds(
            lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
            inner, st.integers(0, 2), st.integers(0, 2),
        )  # fmt: skip
        tuples = st.lists(inner, min_size=1, max_size=2).map(
            lambda parts: {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
        )
        members = st.dictionaries(st.sampled_from(["a", "b c", "日", 'q"', "minimum"]), inner, max_size=3)
        objects = members.flatmap(
            lambda m: (
                st.lists(st.sampled_from(sorted(m)), unique=True).map(
                    lambda required: {"type": "object", "properties": m, "required": required}
                )
                if m
                else st.just({"type": "object", "properties": {}, "additionalProperties": False})
            )
        )
        maps = st.builds(
            lambda part, low, more: {
                "type": "object", "additionalProperties": part, "minProperties": low, "maxProperties": low + more,
            },
            inner, st.integers(0, 1), st.integers(0, 2),
        )  # fmt: skip
        either = st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"anyOf": parts})
        return st.one_of(arrays, tuples, objects, maps, either)

    return st.recursive(leaves, containers, max_leaves=5)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=small_schemas())
def test_any_schema_that_is_accepted_is_obeyed(llm: LLM, schema: dict[str, Any]) -> None:
    texts = ended(llm, Grammar.json_schema(schema), 8)
    for text in texts:
        jsonschema.validate(json.loads(text), schema)


def test_without_the_mask_the_outputs_are_not_in_the_language(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: what the tests above check does not come by itself."""
    monkeypatch.setattr(GrammarMasks, "apply", lambda *args: None)
    texts = [one(engine(), Grammar.json_object(), seed=seed).text for seed in range(8)]
    with pytest.raises(json.JSONDecodeError):
        [json.loads(text) for text in texts]


def test_special_tokens_spelled_as_text_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant that was nearly written: the vocabulary with "<|im_end|>" as nine characters that a string may hold."""

    class SpellsSpecialTokens(GrammarCompiler):
        def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
            special = Tokenizer.__new__(Tokenizer)
            special.__dict__.update(tokenizer.__dict__, special_token_ids=frozenset())
            super().__init__(special, vocab_size)

    broken = engine()
    broken.core.grammars = SpellsSpecialTokens(broken.tokenizer, VOCAB_SIZE)
    with pytest.raises(AssertionError, match="a special token leaves no text"):
        ended(broken, Grammar.regex("[a-z<|_>]{40}"), 8, logit_bias={256: 8.0, 258: 8.0})


# ---- the end ----


def test_the_end_is_possible_where_the_output_is_complete_and_nowhere_else(llm: LLM) -> None:
    eager = {EOS: 50.0, END_OF_TURN: 40.0}
    assert one(llm, Grammar.regex("(ab)+"), logit_bias=eager).token_ids == [*b"ab", EOS]
    assert one(llm, Grammar.regex("(ab)*"), logit_bias=eager).token_ids == [EOS]
    never = {EOS: -50.0, END_OF_TURN: -50.0}
    closed = one(llm, Grammar.regex("abc"), logit_bias=never)
    assert (closed.text, closed.finish_reason, closed.stop_reason) == ("abc", "stop", None)
    assert one(llm, Grammar.regex("(ab)+"), logit_bias=never, max_tokens=7).text == "abababa"


def test_min_tokens_and_ignore_eos_put_the_end_off_while_there_is_more_to_say(llm: LLM) -> None:
    eager = {EOS: 50.0}
    assert one(llm, Grammar.regex("(ab)+"), logit_bias=eager, min_tokens=5).token_ids == [*b"ababab", EOS]
    endless = one(llm, Grammar.regex("(ab)+"), logit_bias=eager, ignore_eos=True, max_tokens=9)
    assert (endless.text, endless.finish_reason) == ("ababababa", "length")
    for options in ({"min_tokens": 50}, {"ignore_eos": True}, {"min_tokens": 50, "ignore_eos": True}):
        closed = one(llm, Grammar.regex("abc"), **options)
        assert (closed.token_ids[:-1], closed.text, closed.finish_reason) == ([*b"abc"], "abc", "stop")
        assert closed.token_ids[-1] in (EOS, END_OF_TURN)
    assert llm.recorder.last is not None
    assert llm.recorder.last.finished[0].reason == "stop"
    assert llm.core.scheduler.blocks.num_free_blocks == llm.core.scheduler.blocks.num_blocks


def test_stop_strings_and_stop_tokens_cut_it_short(llm: LLM) -> None:
    grammar = Grammar.json_schema({"type": "object", "properties": {"k": {"const": "vvv"}}, "required": ["k"]})
    by_text = one(llm, grammar, stop=['"v'])
    assert (by_text.finish_reason, by_text.stop_reason) == ("stop", '"v')
    by_token = one(llm, grammar, stop_token_ids=[ord("v")])
    assert (by_token.finish_reason, by_token.stop_reason) == ("stop", ord("v"))
    later = one(llm, grammar, stop_token_ids=[ord("v")], min_tokens=60)
    assert json.loads(later.text) == {"k": "vvv"}, (
        "nothing but v was possible there, and the end came before the minimum"
    )


def test_ids_that_no_token_has_are_never_allowed(llm: LLM) -> None:
    sample = one(llm, Grammar.regex("[ -~]{20}"), logit_bias={UNUSED: 100.0, 271: 100.0})
    assert len(sample.text) == 20


def test_a_bias_may_rule_out_all_that_the_grammar_allows(llm: LLM) -> None:
    bad, good = llm.generate(
        ["A", "A"],
        [hot(Grammar.regex("x"), logit_bias={ord("x"): float("-inf")}), hot(Grammar.regex("x"))],
    )
    assert bad.finish_reason == "error"
    assert "grammar has ruled out every token" in (bad.samples[0].error or "")
    assert good.text == "x"


# ---- however it is computed ----

TEXTS = ["A", "Return a list of the names in the current scope. " * 2, "class", "import os\n", "Hello", "x = {"]
GRAMMARS = [
    Grammar.json_schema(PERSON), None, Grammar.regex("[a-z ]{30,}"), Grammar.ebnf(ARITHMETIC), None, Grammar.json_object(),
]  # fmt: skip
MIXED = [
    SamplingParams(grammar=grammar, temperature=1.2 * (i % 3 > 0), seed=i, max_tokens=40, logprobs=2, ignore_eos=not grammar)
    for i, grammar in enumerate(GRAMMARS)
]  # fmt: skip


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [sample.token_ids for output in outputs for sample in output.samples]


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    llm = engine(enable_prefix_cache=False)
    return [tokens(llm.generate(text, params))[0] for text, params in zip(TEXTS, MIXED, strict=True)]


def test_the_same_tokens_in_a_mixed_batch(llm: LLM, alone: list[list[int]]) -> None:
    assert tokens(llm.generate(TEXTS, MIXED)) == alone
    assert tokens(llm.generate(TEXTS[::-1], MIXED[::-1])) == alone[::-1]


def test_the_same_tokens_when_preempted(alone: list[list[int]]) -> None:
    small = engine(num_kv_blocks=22, max_batched_tokens=32, max_num_seqs=6)
    outputs = small.generate(TEXTS, MIXED)
    assert tokens(outputs) == alone
    preempted = {name for step in small.recorder.steps for name in step.preempted}
    constrained = {o.request_id for o, grammar in zip(outputs, GRAMMARS, strict=True) if grammar}
    assert preempted & constrained, "the cache was meant to be too small"


def test_forks_have_grammars_of_their_own(llm: LLM) -> None:
    params = hot(Grammar.json_schema(PERSON), n=6)
    together = llm.generate("Return a", params)[0].samples
    assert len({sample.text for sample in together}) == 6
    late = engine(max_num_seqs=6, num_kv_blocks=30).generate(["Return a", "Return b"], [params, params])
    assert [sample.token_ids for sample in late[0].samples] == [sample.token_ids for sample in together]


def test_matchers_go_when_their_requests_go() -> None:
    llm = engine()
    request_id = llm.core.add([65], hot(Grammar.regex("[a-z]{90}"), n=3))
    for _ in range(5):
        llm.core.step()
    masks = llm.core.executor.sampler._grammar_masks  # type: ignore[attr-defined]
    assert len(masks._progress) == 3
    llm.core.abort(request_id)
    assert one(llm, Grammar.regex("ab")).text == "ab"
    assert len(masks._progress) == 1


def test_a_repeated_step_gives_the_same_tokens() -> None:
    """The executor's contract: a plan may be executed again, as after a step that raised."""
    llm = engine()
    for seed in range(3):
        llm.core.add([65 + seed], hot(Grammar.json_schema(PERSON), seed=seed))
    for _ in range(20):
        plan = llm.core.scheduler.schedule()
        first = llm.core.executor.execute(plan)
        again = llm.core.executor.execute(plan)
        assert first.token_ids == again.token_ids
        llm.core.scheduler.update(plan, again)


def test_logprobs_are_of_the_model_without_the_grammar(llm: LLM) -> None:
    params = {"temperature": 0.0, "logprobs": 1, "max_tokens": 1}
    free = llm.generate("Return a", SamplingParams(**params))[0].logprobs[0]
    bound = llm.generate("Return a", SamplingParams(grammar=Grammar.regex("~"), **params))[0].logprobs[0]
    assert bound.top == free.top
    assert bound.token_id == ord("~")
    assert bound.rank > 1


# ---- what is refused ----


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar.regex("(a"), r"\(regex\) is not valid: .*parenthesis is not closed"),
        (Grammar.regex(r"(a)\1"), "Backreference is not supported"),
        (Grammar.ebnf("root ::= other"), r'\(ebnf\) is not valid: .*"other" is not defined'),
        (Grammar.ebnf('other ::= "a"'), 'root rule with name "root" is not found'),
        (Grammar.json_schema("{nope"), "the JSON schema is not JSON"),
        (Grammar.json_schema("[1]"), "expected an object, or true"),
        (Grammar.json_schema({"type": "integr"}), 'Unsupported type "integr"'),
        (Grammar.json_schema({"type": "integer", "minimum": 5, "maximum": 3}), "minimum greater than maximum"),
        (Grammar.json_schema({"$ref": "#/$defs/none"}), "Cannot find field"),
    ],
    ids=lambda value: value.source if isinstance(value, Grammar) else "",
)
def test_invalid_grammars(llm: LLM, grammar: Grammar, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        llm.generate(["A", "A"], [SamplingParams(), SamplingParams(grammar=grammar)])
    assert "/cpp/" not in str(caught.value)
    assert not llm.core.has_work


A = {"a": {"type": "integer"}}
UNENFORCED: list[tuple[dict[str, Any], Any, str]] = [
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1, 1], "uniqueItems"),
    ({"type": "array", "contains": {"type": "integer"}}, [], "contains"),
    ({"type": "integer", "not": {"const": 3}}, 3, "not"),
    ({"type": "object", "properties": A, "if": {"required": ["a"]}, "then": {"required": ["b"]}}, {"a": 1}, "if"),
    ({"type": "object", "properties": A, "dependentRequired": {"a": ["b"]}}, {"a": 1}, "dependentRequired"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, 3, "oneOf .* write anyOf"),
    ({"type": "string", "pattern": "^a+$", "maxLength": 2}, "aaa", "a pattern and a length"),
    ({"minimum": 3}, 2, 'minimum without "type": "number"'),
    ({"type": "integer", "enum": [1, "a"]}, "a", "'a', which is not of type 'integer'"),
    ({"type": "integer", "enum": [True]}, True, "True, which is not of type 'integer'"),
    ({"$defs": {"x": {"type": "integer"}}, "$ref": "#/$defs/x", "minimum": 5}, 3, "minimum beside \\$ref"),
    ({"anyOf": [{"required": ["a"]}], "properties": A}, {"a": "x"}, "properties beside anyOf"),
    ({"allOf": [{"type": "object"}, {"type": "integer"}]}, 3, "allOf of several"),
    ({"type": "object", "required": ["q"]}, {}, "'q' is required"),
    ({"$ref": "http://example.com/schema"}, 3, "leads out of the schema"),
    ({"type": "number", "multipleOf": 0.5}, 0.7, 'multipleOf without "type": "integer"'),
    ({"type": "object", "patternProperties": {"^a": {"type": "null"}}, "properties": A}, {"a": 1}, "one name may fall"),
    ({"type": "object", "propertyNames": {"pattern": "^b$"}, "properties": A}, {"a": 1}, "one name may fall"),
    ({"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 2}, {"": None}, "come twice"),
]


@pytest.mark.parametrize(("schema", "wrong", "message"), UNENFORCED, ids=lambda value: str(value)[:60])
def test_what_the_compiler_ignores_is_refused(schema: dict[str, Any], wrong: Any, message: str) -> None:
    """And refused for a reason: xgrammar takes the schema, and then a value that it forbids."""
    info = xgrammar.TokenizerInfo([bytes([i]) for i in range(256)], stop_token_ids=[0])
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_json_schema(schema))
    text = '{"":null,"":null}' if wrong == {"": None} else json.dumps(wrong)
    with suppress(referencing.exceptions.Unresolvable), pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(text), schema)
    assert matcher.accept_string(text)
    assert matcher.is_completed(), "xgrammar enforces it by now: let it pass"
    nested = {"type": "array", "items": {"type": "object", "properties": {"minimum": schema}}}
    with pytest.raises(InvalidRequestError, match=message):
        check_json_schema(json.dumps(schema))
    with pytest.raises(InvalidRequestError, match="#/items/properties/minimum"):
        check_json_schema(json.dumps(nested))


def test_what_is_enforced_passes_the_check() -> None:
    for schema in (
        PERSON, {}, {"type": "string", "enum": ["a"], "title": "T"}, {"const": 1, "description": "one"},
        {"type": "object", "propertyNames": {"maxLength": 3}}, {"properties": {"not": {}, "if": {}}, "minProperties": 2},
    ):  # fmt: skip
        check_json_schema(json.dumps(schema))
    check_json_schema("true")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = engine()
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(MissingExtraError, match=r"infra-lab\[server\]"):
        llm.generate("A", SamplingParams(grammar=Grammar.json_object()))
    assert llm.generate("A", SamplingParams(max_tokens=2, ignore_eos=True))[0].finish_reason == "length"


def test_the_specification_is_plain_data() -> None:
    with pytest.raises(InvalidRequestError, match="the JSON schema is no JSON"):
        Grammar.json_schema({"const": {1, 2}})
    with pytest.raises(InvalidRequestError, match="grammar is 'json'; it must be a Grammar"):
        SamplingParams(grammar="json")  # type: ignore[arg-type]
    llm = engine()
    bound = llm.core.grammars.compile(Grammar.regex("ab"))
    assert isinstance(bound, BoundGrammar)
    assert pickle.loads(pickle.dumps(bound)) == Grammar.regex("ab")


def test_a_grammar_is_bound_once_and_for_one_vocabulary(llm: LLM) -> None:
    params = hot(Grammar.regex("ab"))
    bound = llm.core.grammars.bind(params)
    assert llm.core.grammars.bind(bound) is bound
    assert params.grammar == Grammar.regex("ab"), "the caller's own are left as they were"
    wider = GrammarCompiler(llm.tokenizer, VOCAB_SIZE + 32).bind(bound).grammar
    assert isinstance(wider, BoundGrammar)
    assert wider.compiled.tokenizer_info.vocab_size == VOCAB_SIZE + 32


def test_threads_share_a_compiler(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once for the first time: there must not be several caches, of which one is kept."""
    compiler, num_made = GrammarCompiler(llm.tokenizer, VOCAB_SIZE), list[str]()
    make = compiler._for_vocabulary

    def slowly(is_allowed: Any) -> Any:
        num_made.append("one")
        time.sleep(0.02)  # wide open for who does not wait
        return make(is_allowed)

    monkeypatch.setattr(compiler, "_for_vocabulary", slowly)
    grammars = [Grammar.json_schema(PERSON), Grammar.regex("[a-z]{1,40}"), Grammar.ebnf(ARITHMETIC)] * 8
    with ThreadPoolExecutor(8) as threads:
        bound = list(threads.map(compiler.compile, grammars))
    assert len(num_made) == 2, "one for JSON, one for other text"
    assert [one.source for one in bound] == [one.source for one in grammars]
    alone = [GrammarCompiler(llm.tokenizer, VOCAB_SIZE).compile(grammar) for grammar in grammars[:3]]
    for position, one_of_many in enumerate(bound):
        expected = alone[position % 3].compiled.serialize_json()
        assert one_of_many.compiled.serialize_json() == expected


def test_an_output_that_was_not_masked_is_an_invariant_broken(llm: LLM) -> None:
    params = llm.core.grammars.bind(hot(Grammar.regex("ab")))
    request = Request(token_ids=[65], request_id="r", params=params)
    request.token_ids += b"ax"
    bits = xgrammar.allocate_token_bitmask(1, VOCAB_SIZE)
    with pytest.raises(InvariantError, match="r: output token 1, 120, is outside its grammar"):
        GrammarMasks()._fill(bits, 0, request)
    unbound = Request(token_ids=[65], request_id="r", params=hot(Grammar.regex("ab")))
    with pytest.raises(InvariantError, match="was not compiled"):
        GrammarMasks()._fill(bits, 0, unbound)


def test_a_model_without_an_end_of_sequence_token(llm: LLM) -> None:
    endless = Tokenizer.__new__(Tokenizer)
    endless.__dict__.update(llm.tokenizer.__dict__, eos_token_ids=())
    core = EngineCore(llm.core.scheduler, llm.core.executor, endless, vocab_size=VOCAB_SIZE, clock=llm.core.clock)
    with pytest.raises(InvalidRequestError, match="no end-of-sequence token"):
        core.add([65], SamplingParams(grammar=Grammar.json_object()))


# ---- a model with a real vocabulary ----


@pytest.mark.smollm2
@pytest.mark.slow
def test_smollm2_writes_what_is_asked_for() -> None:
    path = resolve_model("smollm2-135m")
    llm = LLM(str(path), max_model_len=512, kv_cache_bytes=64 << 20)
    question = [{"role": "user", "content": "Describe Alice, a 30 year old painter, in JSON."}]
    prompt = llm.chat_token_ids(question)
    schema = {**PERSON, "properties": {**PERSON["properties"], "name": {"type": "string", "maxLength": 12}}}
    params = [SamplingParams(grammar=Grammar.json_schema(schema), temperature=t, seed=1, n=2) for t in (0.0, 1.0, 1.5)]
    for output in llm.generate([prompt] * 3, params):
        for sample in output.samples:
            assert sample.finish_reason == "stop", sample.text
            jsonschema.validate(json.loads(sample.text), schema)
    date = llm.generate([prompt], SamplingParams(grammar=Grammar.regex(r"\d{4}-\d{2}-\d{2}"), temperature=1.5, n=4))[0]
    assert all(re.fullmatch(r"\d{4}-\d{2}-\d{2}", sample.text) for sample in date.samples)
