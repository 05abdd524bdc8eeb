"""What a panel needs in the browser besides its widgets: the style sheet, and figures that are as wide as they can be."""

import anywidget

from infra_lab.widgets.style import CSS, ROOT_CLASS

_ESM = f"""
// plotly measures its element once, before the element is in the page, and then listens to the window only. Here every
// figure of the panel is told when its own width has changed: when it appears, and when a side bar opens.
export default {{
  render({{ el }}) {{
    const widths = new WeakMap();
    // A resize that meets an update on its way may be lost, hence the second look.
    const fit = (figure, tries) => {{
      // When a height is set, plotly freezes the width with it and does not resize any more.
      if (figure.layout && figure.layout.autosize == null && figure.layout.width) {{
        delete figure.layout.width;
        figure.layout.autosize = true;
      }}
      figure._responsiveChartHandler?.();
      setTimeout(() => {{
        const drawn = figure._fullLayout?.width;
        if (tries && figure.isConnected && drawn && Math.abs(drawn - figure.clientWidth) > 1) fit(figure, tries - 1);
      }}, 400);
    }};
    const sizes = new ResizeObserver((entries) => {{
      for (const {{ target, contentRect }} of entries) {{
        if (!contentRect.width || widths.get(target) === contentRect.width) continue;
        widths.set(target, contentRect.width);
        fit(target, 8);
      }}
    }});
    const find = () => {{
      for (const figure of el.closest(".{ROOT_CLASS}")?.querySelectorAll(".js-plotly-plot") ?? []) {{
        if (figure._responsiveChartHandler && !widths.has(figure)) {{
          widths.set(figure, 0);
          sizes.observe(figure);
        }}
      }}
    }};
    let waiting = 0;
    const changes = new MutationObserver(() => {{
      if (!waiting) waiting = setTimeout(() => {{ waiting = 0; find(); }}, 50);
    }});
    const start = new ResizeObserver(() => {{
      const root = el.closest(".{ROOT_CLASS}");
      if (!root) return;
      start.disconnect();
      changes.observe(root, {{ childList: true, subtree: true }});
      find();
    }});
    start.observe(el);
    return () => {{ start.disconnect(); changes.disconnect(); sizes.disconnect(); clearTimeout(waiting); }};
  }},
}};
"""


class Frame(anywidget.AnyWidget):
    """Takes no room; one is inside each panel."""

    _esm = _ESM
    _css = CSS
