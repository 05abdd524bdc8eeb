"""plotly in the browser: sent to a page once, not once for every figure.

A FigureWidget carries plotly's bundle of 5 MB, and a page reads it anew for each figure; a lesson with six of them would load
30 MB. Here one hidden widget brings the bundle and leaves it in the page, and the figures wait for it:

    kernel        Bundle (5 MB, once)      figure (2 KB)      figure (2 KB)
                     │                        │                  │
    page             └── globalThis[KEY] ─────┴──────────────────┘
"""

import json
from functools import cache
from pathlib import Path

import anywidget
import plotly

_KEY = f"__infra_lab_plotly_{plotly.__version__}"

_BUNDLE_ESM = f"""
const source = SOURCE;
if (!globalThis["{_KEY}"]) {{
  const url = URL.createObjectURL(new Blob([source], {{ type: "text/javascript" }}));
  globalThis["{_KEY}"] = import(url).finally(() => URL.revokeObjectURL(url));
}}
export default {{}};
"""

FIGURE_ESM = f"""
const MESSAGES = ["addTraces", "deleteTraces", "moveTraces", "restyle", "relayout", "update", "animate",
  "removeLayoutProps", "removeTraceProps"].map((name) => "_py2js_" + name);

const loaded = async () => {{
  for (let tries = 0; !globalThis["{_KEY}"]; tries++) {{
    if (tries > 1200) throw new Error("plotly has not arrived from the kernel; run the cell again");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }}
  return (await globalThis["{_KEY}"]).default;
}};

// After every change plotly would report all its defaults to the kernel, where nobody asks for them: more bytes than the change
// itself, a second round in which the kernel is busy, and a ValueError there for NumPy arrays (plotly 7.1).
const IGNORED = ["_js2py_traceDeltas", "_js2py_widget_layoutDelta"];
const quiet = (model) => {{
  let changed = false;
  return {{
    get: (name) => model.get(name),
    on: (event, listener) => model.on(event, listener),
    set: (name, value) => {{
      if (IGNORED.includes(name)) return;
      changed = true;
      model.set(name, value);
    }},
    save_changes: () => {{
      if (changed) model.save_changes();
      changed = false;
    }},
  }};
}};

// A line at `_cursor` and a veil over what comes after it. plotly's own shapes would draw the whole figure anew at every step.
const svg = (name, style) => {{
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(style)) node.style.setProperty(key, value);
  return node;
}};
const drawCursor = (model, plot) => {{
  plot.querySelector(".infra-lab-cursor")?.remove();
  const at = model.get("_cursor");
  if (at === null) return;
  const {{ _size: {{ l, t, w, h }}, xaxis }} = plot._fullLayout;
  const x = Math.min(Math.max(xaxis.d2p(at), 0), w);
  const veil = svg("rect", {{ fill: "var(--jp-layout-color1)", opacity: 0.72 }});
  const line = svg("path", {{ stroke: "var(--jp-ui-font-color1)", "stroke-width": 1.5 }});
  for (const [key, value] of Object.entries({{ x: l + x, y: t, width: w - x, height: h }})) veil.setAttribute(key, value);
  line.setAttribute("d", `M${{l + x}},${{t}}v${{h}}`);
  const group = svg("g", {{ "pointer-events": "none" }});
  group.setAttribute("class", "infra-lab-cursor");
  group.append(veil, line);
  plot.querySelector(".main-svg").append(group);
}};
const followCursor = async (model, el) => {{
  const plot = () => (el._fullLayout ? el : el.querySelector(".js-plotly-plot"));
  while (!plot()?._fullLayout?._size || !plot().on) await new Promise((resolve) => setTimeout(resolve, 20));
  const draw = () => drawCursor(model, plot());
  plot().on("plotly_afterplot", draw);
  model.on("change:_cursor", draw);
  draw();
}};

export default () => {{
  let ready;
  return {{
    initialize({{ model }}) {{
      // What Python changes before plotly is here: plotly gets it afterwards, unless the whole state came in between.
      let missed = [];
      const listeners = MESSAGES.map((name) => ["change:" + name, () => {{
        const message = model.get(name);
        if (message) missed.push([name, message]);
      }}]);
      listeners.push(["change:_widget_data", () => {{ missed = []; }}]);
      for (const [event, listener] of listeners) model.on(event, listener);
      ready = loaded().then(async (make) => {{
        const figure = make();
        for (const [event, listener] of listeners) model.off(event, listener);
        await figure.initialize({{ model: quiet(model) }});
        for (const [name, message] of missed) {{
          model.set(name, message);
          model.set(name, null);
        }}
        return figure;
      }});
    }},
    async render(context) {{
      const remove = (await ready).render({{ ...context, model: quiet(context.model) }});
      followCursor(context.model, context.el);
      return remove;
    }},
  }};
}};
"""


class _Bundle(anywidget.AnyWidget):
    """Never shown; it does its work when the page hears of it."""

    _esm = ""


@cache
def share_bundle() -> _Bundle:
    """Send plotly's bundle to the pages of this kernel; only the first call does. Returns the widget that carries it."""
    path = Path(plotly.__file__).parent / "package_data" / "widgetbundle.js"
    return _Bundle(_esm=_BUNDLE_ESM.replace("SOURCE", json.dumps(path.read_text(encoding="utf-8")), 1))
