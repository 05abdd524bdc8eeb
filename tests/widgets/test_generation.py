"""The panel in which the engine writes: what it shows is what the engine did, and Stop gives everything back."""

import base64
import io
import threading
from typing import Any

import pytest
from PIL import Image

from infra_lab import LLM, SamplingParams
from infra_lab.errors import ConfigError, InvalidRequestError, ModelNotFoundError
from infra_lab.widgets import generation
from infra_lab.widgets.figures import step_times
from infra_lab.widgets.generation import GenerationPanel
from infra_lab.widgets.generation_view import printable_html, tokens_html

GREEDY = {"temperature": 0.0}


@pytest.fixture
def panel() -> GenerationPanel:
    return GenerationPanel(models=("tiny",), prompt="What is json.dumps?", max_tokens=12, as_chat=False)


def free_and_all(panel: GenerationPanel) -> tuple[int, int]:
    blocks = panel.llm.core.scheduler.blocks
    return blocks.num_free_blocks, blocks.num_blocks


def test_it_writes_what_the_engine_writes(panel: GenerationPanel) -> None:
    panel.controls["prompt"].value = "A list is"
    panel.run(wait=True)
    alone = LLM("tiny").generate("A list is", SamplingParams(max_tokens=12, temperature=0.0))[0]
    run = panel.generation
    assert run is not None
    assert (run.token_ids, run.text, run.finish_reason) == (alone.token_ids, alone.text, alone.finish_reason)
    assert printable_html(alone.text) in panel._text.value


def test_a_chat_prompt_goes_through_the_template(panel: GenerationPanel) -> None:
    panel.controls["as_chat"].value = True
    panel.run(wait=True)
    llm = LLM("tiny")
    message = [{"role": "user", "content": "What is json.dumps?"}]
    assert panel.generation is not None
    assert panel.generation.token_ids == llm.chat(message, SamplingParams(max_tokens=12, temperature=0.0)).token_ids


def test_every_step_is_drawn_and_counted(panel: GenerationPanel) -> None:
    panel.controls["prompt"].value = "A list is"
    panel.run(wait=True)
    run = panel.generation
    assert run is not None
    assert len(run.steps) == len(run.token_ids) == 12
    prompt, token, around, floor = panel.figure.data
    assert (list(prompt.x), list(token.x)) == ([0], list(range(1, 12)))
    total_ms = sum(prompt.y) + sum(token.y) + sum(around.y)
    assert total_ms == pytest.approx(1e3 * sum(step.duration_s for step in run.steps))
    assert floor.y[0] == pytest.approx(1e3 * run.weight_bytes / run.read_bytes_per_s)


def test_the_same_prompt_again_is_computed_again(panel: GenerationPanel) -> None:
    for _ in range(2):
        panel.run(wait=True)
        assert panel.generation is not None
        assert panel.generation.steps[0].num_tokens == len(panel.llm.encode("What is json.dumps?")) == 19


def test_the_bandwidth_is_model_bytes_times_tokens_per_second(panel: GenerationPanel) -> None:
    panel.controls["prompt"].value = "A list is"
    panel.run(wait=True)
    run = panel.generation
    assert run is not None
    assert run.metrics is not None
    assert run.metrics.first_token_s is not None
    assert run.metrics.last_token_s is not None
    seconds = run.metrics.last_token_s - run.metrics.first_token_s
    assert run.achieved_bytes_per_s == pytest.approx(panel.llm.weight_bytes * 11 / seconds)
    assert run.share_of_ceiling == pytest.approx(run.achieved_bytes_per_s / run.read_bytes_per_s)
    assert "12 tokens (the limit ended it)" in panel.summary


def test_stop_ends_it_between_two_steps_and_frees_its_blocks(
    panel: GenerationPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel.controls["prompt"].value, panel.controls["max_tokens"].value = "A list is", 256
    executor, fourth = panel.llm.core.executor, threading.Event()
    execute, count, go_on = executor.execute, iter(range(1000)), threading.Event()

    def pausing(plan: Any) -> Any:
        if next(count) == 3:
            fourth.set()
            assert go_on.wait(60)
        return execute(plan)

    monkeypatch.setattr(executor, "execute", pausing)
    panel.run()
    assert fourth.wait(60)
    assert free_and_all(panel)[0] < free_and_all(panel)[1]
    panel.stop()
    go_on.set()
    panel.wait()
    run = panel.generation
    assert run is not None
    assert (len(run.token_ids), run.finish_reason) == (4, "abort")
    assert free_and_all(panel)[0] == free_and_all(panel)[1]
    assert not panel.llm.core.has_work
    assert "stopped" in panel.summary
    assert panel.stop_button.disabled
    panel.run(wait=True)
    assert panel.generation is not None
    assert panel.generation.token_ids[:4] == run.token_ids


def test_the_kernel_is_free_while_it_writes(panel: GenerationPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, execute = threading.Event(), panel.llm.core.executor.execute
    monkeypatch.setattr(panel.llm.core.executor, "execute", lambda plan: execute(plan) if go_on.wait(60) else None)
    panel.generate_button.click()  # returns although nothing can be computed yet
    assert not panel.stop_button.disabled
    go_on.set()
    panel.wait()


def test_a_new_generate_ends_the_one_before(panel: GenerationPanel) -> None:
    panel.controls["prompt"].value, panel.controls["max_tokens"].value = "A list is", 256
    panel.run()
    panel.controls["prompt"].value, panel.controls["max_tokens"].value = "Return the", 3
    panel.run(wait=True)
    assert panel.generation is not None
    assert (panel.generation.settings.prompt, len(panel.generation.token_ids)) == ("Return the", 3)
    assert free_and_all(panel)[0] == free_and_all(panel)[1]


def test_two_panels_take_turns_with_one_engine() -> None:
    panels = [GenerationPanel(models=("tiny",), prompt=p, max_tokens=40, as_chat=False) for p in ("A list", "Return")]
    assert panels[0].llm is panels[1].llm
    for panel in panels:
        panel.run()
    for panel in panels:
        panel.wait()
        assert panel.generation is not None
        expected = LLM("tiny").generate(panel.generation.settings.prompt, SamplingParams(max_tokens=40, **GREEDY))[0]
        assert panel.generation.token_ids == expected.token_ids
        assert len(panel.generation.steps) == len(expected.token_ids)


def test_updates_are_throttled(panel: GenerationPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    panel.controls["prompt"].value = "A list is"
    now = [0.0]
    monkeypatch.setattr(generation.time, "monotonic", lambda: now[0])
    shown: list[int] = []
    show = panel._show_text
    monkeypatch.setattr(panel, "_show_text", lambda: (shown.append(len(panel.generation.token_ids)), show()))  # type: ignore[union-attr]
    panel.run(wait=True)
    assert shown == [0, 12]  # the clock stands: the beginning and the end, nothing between
    shown.clear()
    execute = panel.llm.core.executor.execute

    def slow(plan: Any) -> Any:
        now[0] += 0.03  # a step takes 30 ms: every second one is shown
        return execute(plan)

    monkeypatch.setattr(panel.llm.core.executor, "execute", slow)
    panel.run(wait=True)
    assert shown == [0, 2, 4, 6, 8, 10, 12, 12]


@pytest.mark.parametrize(("prompt", "said"), [("", "no tokens"), ("x" * 2000, "must fit in the context")])
def test_a_request_that_cannot_be_served_says_so(panel: GenerationPanel, prompt: str, said: str) -> None:
    panel.controls["prompt"].value = prompt
    with pytest.raises(InvalidRequestError, match=said):
        panel.run(wait=True)
    assert said in panel._message.text
    assert "Error" not in panel._message.text
    panel.controls["prompt"].value = "A list is"
    panel.run(wait=True)
    assert panel._message.text == ""


def test_what_the_executor_raises_is_shown_and_the_engine_goes_on(
    panel: GenerationPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(plan: Any) -> Any:
        raise RuntimeError("out of <memory>")

    with monkeypatch.context() as patch:
        patch.setattr(panel.llm.core.executor, "execute", broken)
        with pytest.raises(RuntimeError, match="memory"):
            panel.run(wait=True)
    assert panel._message.text == "RuntimeError: out of <memory>"
    assert free_and_all(panel)[0] == free_and_all(panel)[1]
    panel.run(wait=True)


def test_only_models_that_are_here_can_be_chosen(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFRA_LAB_CACHE", str(tmp_path))
    panel = GenerationPanel()
    assert tuple(panel.controls["model"].options) == ("tiny",)
    notes = [child.text for child in panel.widget.children if getattr(child, "tone", "") == "note"]
    assert any("infra-lab fetch smollm2-135m" in note for note in notes)
    with pytest.raises(ModelNotFoundError, match="infra-lab fetch"):
        GenerationPanel(models=("smollm2-135m",))


def test_defaults_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        GenerationPanel(models=("tiny",), max_tokens=0)
    with pytest.raises(TypeError, match="no_such"):
        GenerationPanel(models=("tiny",), no_such=1)


def test_text_cannot_act_in_the_page() -> None:
    text = "<script>\u202e\x1b[31m&\r\n"
    assert printable_html(text) == (
        '&lt;script&gt;<span class="infra-lab-odd">\\xE2\\x80\\xAE</span><span class="infra-lab-odd">\\x1B</span>[31m&amp;'
        '<span class="infra-lab-odd">\\x0D</span>\n'
    )


def test_tokens_show_their_bytes() -> None:
    tokenizer = LLM("tiny").tokenizer
    special = min(tokenizer.special_token_ids)
    html = tokens_html([*tokenizer.encode("<é\n"), special], tokenizer)
    assert html.count('class="infra-lab-token"') == 5  # "<", two bytes of "é", the line break, the special token
    assert "&lt;" in html
    assert "\\xC3" in html
    assert "\\xA9" in html
    assert "↵" in html
    assert (tokenizer.token_text(special) or "?").replace("<", "&lt;").replace(">", "&gt;") in html


def test_showing_tokens_changes_the_text_in_place(panel: GenerationPanel) -> None:
    panel.controls["prompt"].value = "A list is"
    panel.run(wait=True)
    assert "infra-lab-token" not in panel._text.value
    panel.show_tokens.value = True
    assert panel._text.value.count("infra-lab-token") == 12
    panel.show_tokens.value = False
    assert "infra-lab-token" not in panel._text.value


def test_a_saved_notebook_has_a_picture_and_the_text(panel: GenerationPanel) -> None:
    panel.controls["prompt"].value = "A list is"
    panel.run(wait=True)
    saved = panel._repr_mimebundle_()
    picture = Image.open(io.BytesIO(base64.b64decode(saved["image/png"])))
    assert picture.size == (900, 260)
    assert panel.generation is not None
    assert repr(panel.generation.text) in saved["text/plain"]
    assert panel.summary in saved["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in saved


def test_no_steps_make_an_empty_figure() -> None:
    figure = step_times([], 0.0)
    assert [len(trace.x) for trace in figure.data] == [0, 0, 0, 0]
    assert figure.layout.annotations[0].text == "no steps yet"
