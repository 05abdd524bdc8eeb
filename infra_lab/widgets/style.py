"""The panels' style sheet: JupyterLab's own colours, followed live when the theme changes."""

from infra_lab.widgets.theme import ACCENT, INK, MUTED, SURFACE

ROOT_CLASS = "infra-lab-panel"
"""On the outermost element of every panel; no rule reaches outside of it."""


def _rgb(colour: str) -> str:
    """Write "#RRGGBB" as browsers do in inline styles."""
    return f"rgb({int(colour[1:3], 16)}, {int(colour[3:5], 16)}, {int(colour[5:7], 16)})"


def _mapped(colour: str, variable: str) -> str:
    """Plotly writes colours into each SVG element; where it wrote this one, the theme's takes its place."""
    rgb = _rgb(colour)
    return "".join(
        f'.{ROOT_CLASS} .js-plotly-plot svg [style*="{kind}: {rgb}"] {{ {kind}: var({variable}) !important; }}\n'
        for kind in ("fill", "stroke")
    )


CSS = (
    """
.ROOT { container-type: inline-size; border: 1px solid var(--jp-border-color2); border-radius: 10px;
  padding: 12px 16px 8px; margin: 4px 0 8px; background: var(--jp-layout-color1); color: var(--jp-ui-font-color1);
  overflow: hidden; box-sizing: border-box; }
.ROOT .infra-lab-title { margin: 0 0 2px; font-size: 15px; font-weight: 600; line-height: 1.35;
  color: var(--jp-ui-font-color1); }
.ROOT .infra-lab-controls { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(230px, 100%), 1fr));
  gap: 6px 28px; align-items: end; overflow: visible; margin: 4px 0 6px; }
.ROOT .infra-lab-controls > * { display: flex; flex-wrap: wrap; height: auto; margin: 0; overflow: visible;
  min-width: 0; }
.ROOT .infra-lab-controls .widget-label { width: 100%; max-width: none; height: auto; line-height: 1.4;
  flex: 0 0 100%; overflow: visible; white-space: normal; text-overflow: clip; text-align: left; font-size: 12px;
  color: var(--jp-ui-font-color1); }
.ROOT .widget-readout { min-width: 4.5ch; width: auto; max-width: 12ch; overflow: visible;
  font-variant-numeric: tabular-nums; color: var(--jp-ui-font-color1); font-size: 12px; }
.ROOT .infra-lab-controls .slider-container { flex: 1 1 90px; min-width: 60px; }
.ROOT .widget-toggle-buttons { width: 100%; }
.ROOT .widget-toggle-buttons .widget-toggle-button { width: auto; flex: 0 1 auto; margin: 0; padding: 0 12px;
  border-radius: 0; font-size: 12px; height: 26px; line-height: 26px; }
.ROOT .widget-toggle-buttons .widget-toggle-button:first-child { border-radius: 6px 0 0 6px; }
.ROOT .widget-toggle-buttons .widget-toggle-button:last-child { border-radius: 0 6px 6px 0; }
.ROOT .widget-toggle-buttons .mod-active { background: var(--jp-brand-color1);
  color: var(--jp-ui-inverse-font-color1); box-shadow: none; }
.ROOT .infra-lab-controls .widget-checkbox { height: 28px; align-items: center; }
.ROOT .infra-lab-controls .widget-checkbox .widget-label-basic { width: auto; display: flex; align-items: center;
  gap: 6px; }
.ROOT .infra-lab-controls select { width: 100%; flex: 1 1 100%; }
.ROOT .infra-lab-actions { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; overflow: visible;
  margin: 2px 0 4px; }
.ROOT .infra-lab-actions > * { margin: 0; }
.ROOT .infra-lab-actions .jupyter-button { width: auto; height: 26px; line-height: 24px; padding: 0 12px;
  font-size: 12px; border-radius: 13px; border: 1px solid var(--jp-border-color1); background: transparent;
  color: var(--jp-ui-font-color1); }
.ROOT .infra-lab-actions .jupyter-button:hover:enabled { background: var(--jp-layout-color2); box-shadow: none; }
.ROOT .infra-lab-actions .infra-lab-quiet { border-color: transparent; color: var(--jp-ui-font-color2); }
.ROOT .infra-lab-player { display: flex; flex-wrap: wrap; gap: 6px 16px; align-items: center; overflow: visible;
  margin: 4px 0; }
.ROOT .infra-lab-player > * { margin: 0; }
.ROOT :is(button, input, select, .noUi-handle):focus-visible { outline: 2px solid var(--jp-brand-color1);
  outline-offset: 2px; }
.ROOT .infra-lab-text { font-size: 13px; line-height: 1.5; white-space: pre-line; color: var(--jp-ui-font-color1); }
.ROOT .infra-lab-summary { padding: 4px 0; }
.ROOT .infra-lab-pinned { padding: 4px 0 0; color: var(--jp-ui-font-color2); }
.ROOT .infra-lab-note { color: var(--jp-ui-font-color2); font-size: 12px; }
.ROOT .infra-lab-error { padding: 6px 10px; margin: 4px 0; border-left: 3px solid var(--jp-error-color1);
  border-radius: 4px; background: color-mix(in srgb, var(--jp-error-color1) 10%, transparent); }
.ROOT > * { margin-left: 0; margin-right: 0; max-width: 100%; }
.ROOT .infra-lab-pool { display: grid; grid-template-columns: minmax(0, 1fr); gap: 0 24px; overflow: visible;
  align-items: start; }
@container (min-width: 1150px) { .ROOT .infra-lab-pool { grid-template-columns: minmax(0, 5fr) minmax(300px, 2fr); } }
.ROOT .infra-lab-pool > * { min-width: 0; margin: 0; overflow: visible; }
.ROOT .infra-lab-columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 12px;
  margin: 6px 0; overflow: visible; }
.ROOT .infra-lab-columns > * { min-width: 0; margin: 0; height: auto; }
.ROOT .infra-lab-columns .widget-html-content { overflow: hidden; }
.ROOT .infra-lab-code { max-height: 420px; overflow: auto; margin: 0; padding: 8px 10px; font-size: 11px; line-height: 1.45;
  font-family: var(--jp-code-font-family); background: var(--jp-layout-color2); color: var(--jp-ui-font-color1);
  border-radius: 6px; white-space: pre; }
.ROOT .infra-lab-code mark { background: color-mix(in srgb, var(--jp-brand-color1) 24%, transparent); color: inherit;
  border-radius: 2px; }
.ROOT .ROOT { border-width: 0; padding: 0; margin: 0; }
.ROOT .infra-lab-text:empty { padding: 0; margin: 0; }
.ROOT .js-plotly-plot, .ROOT .plot-container { width: 100%; }
.ROOT .js-plotly-plot { contain: layout style; }
.ROOT .js-plotly-plot .modebar { display: none !important; }
.ROOT .js-plotly-plot svg text { fill: var(--jp-ui-font-color1) !important;
  font-family: var(--jp-ui-font-family) !important; }
.ROOT .js-plotly-plot svg :is(.xtitle, .ytitle, .x2title, .y2title, .y3title) {
  fill: var(--jp-ui-font-color2) !important; }
.ROOT .js-plotly-plot svg .hoverlayer .hovertext path { fill: var(--jp-layout-color1) !important;
  stroke: var(--jp-border-color1) !important; }
.ROOT .infra-lab-details { font-size: 13px; line-height: 1.5; color: var(--jp-ui-font-color1); }
.ROOT .infra-lab-details table { border-collapse: collapse; margin: 2px 0; }
.ROOT .infra-lab-details :is(th, td) { text-align: left; vertical-align: top; padding: 2px 14px 2px 0;
  font-weight: 400; white-space: normal; }
.ROOT .infra-lab-details th { color: var(--jp-ui-font-color2); white-space: nowrap; }
.ROOT .infra-lab-details code { font-family: var(--jp-code-font-family); font-size: 12px;
  background: var(--jp-layout-color2); border-radius: 3px; padding: 0 2px; white-space: pre-wrap;
  overflow-wrap: anywhere; color: var(--jp-ui-font-color1); }
""".replace("ROOT", ROOT_CLASS)
    + _mapped(INK, "--jp-ui-font-color1")
    + _mapped(MUTED, "--jp-ui-font-color2")
    + _mapped(SURFACE, "--jp-layout-color1")
    + _mapped(ACCENT, "--jp-brand-color1")
)
"""Travels inside each panel, so that it works in any notebook without an extension."""
