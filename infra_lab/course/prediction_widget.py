"""The controls of a prediction: a slider or radio buttons, "Commit", and "Change my mind"."""

import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from infra_lab.course.output import GOOD, NEUTRAL, escape
from infra_lab.errors import MissingExtraError

if TYPE_CHECKING:
    from infra_lab.course.predictions import Prediction


class PredictionWidget:
    """A question, its controls and its state, in step with one `Prediction`.

    open ── Commit ──▶ locked ── Change my mind ──▶ open
    """

    def __init__(self, prediction: "Prediction") -> None:
        try:
            import ipywidgets
        except ImportError:
            raise MissingExtraError("predictions are made in Jupyter; install infra-lab[lab]") from None
        self._prediction = prediction
        label = f"Your guess for: {prediction.question}"
        if prediction.choices:
            self.control = ipywidgets.RadioButtons(
                options=list(prediction.choices), value=prediction.value, layout={"width": "max-content"}
            )
        else:
            middle = prediction.low + round((prediction.high - prediction.low) / 2 / prediction.step) * prediction.step
            self.control = ipywidgets.FloatSlider(
                value=middle if prediction.value is None else prediction.value,
                min=prediction.low, max=prediction.high, step=prediction.step,
                readout_format=f".{_decimals(prediction.step)}f", continuous_update=True, layout={"width": "26em"},
            )  # fmt: skip
        self.control.tooltip = label
        self.commit = ipywidgets.Button(description="Commit", button_style="primary", tooltip=f"Commit: {label}")
        self.change = ipywidgets.Button(description="Change my mind", tooltip="Unlock the guess")
        self.status = ipywidgets.HTML()
        unit = [ipywidgets.Label(prediction.unit)] if prediction.unit and not prediction.choices else []
        question = ipywidgets.HTML(f"<b>{escape(prediction.question)}</b>")
        controls = ipywidgets.HBox([self.control, *unit], layout={"align_items": "center"})
        self.box = ipywidgets.VBox([question, controls, ipywidgets.HBox([self.commit, self.change, self.status])])
        self.change.on_click(lambda _: self._show(locked=False))
        self.control.observe(lambda _: self._show(locked=False), "value")
        self.commit.on_click(lambda _: prediction.commit(self.control.value))
        self.refresh()

    def refresh(self) -> None:
        """Show the prediction as it is now: locked if it is committed."""
        if self._prediction.value is not None:
            self.control.value = self._prediction.value
        self._show(locked=self._prediction.value is not None)

    def _show(self, *, locked: bool) -> None:
        self.control.disabled = locked
        self.commit.disabled = locked or self.control.value is None
        self.change.layout.display = "" if locked else "none"
        committed = self._prediction.describe(self._prediction.value)
        said, colour = (f"✓ committed: {committed}", GOOD) if locked else ("commit a guess before you go on", NEUTRAL)
        self.status.value = f'<span style="color:{colour}">{escape(said)}</span>'

    def mime_bundle(self) -> dict[str, Any]:
        """Return what a notebook front end needs to show the live widget."""
        bundle = self.box._repr_mimebundle_()
        return {mime: data for mime, data in bundle.items() if mime != "text/plain"}


def _decimals(step: float) -> int:
    """Digits after the point that a slider of this step needs."""
    return max(0, -int(Decimal(str(step)).normalize().as_tuple().exponent))


def widget_for(prediction: "Prediction") -> PredictionWidget | None:
    """Make the controls; where ipywidgets is missing say how to answer without them, and return None."""
    try:
        return PredictionWidget(prediction)
    except MissingExtraError as error:
        print(f"{error}; or answer with .commit(value)", file=sys.stderr)
        return None
