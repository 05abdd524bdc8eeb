"""What a driver does inside JupyterLab's page: its own commands, and its own models of cells.

The server exposes the application as `window.jupyterapp`; `OPEN` keeps the notebook's panel as `window.labPanel`.
"""

IN_TIME = """
([argument, seconds]) => Promise.race([
    (SCRIPT)(argument),
    new Promise((_, reject) => setTimeout(() => reject(new Error(`not done after ${seconds} s`)), 1000 * seconds)),
])
"""
"""Runs SCRIPT, and gives up."""

OPEN = """
async path => {
    const pause = () => new Promise(resolve => setTimeout(resolve, 50));
    while (!window.jupyterapp) await pause();
    const app = window.jupyterapp;
    await app.restored;
    const widgets = () => [...app.shell.widgets('main')];
    while (!widgets().some(widget => widget.context?.path === path && widget.sessionContext)) await pause();
    const panel = window.labPanel = widgets().find(widget => widget.context?.path === path);
    await panel.context.ready;
    await panel.revealed;
    await panel.sessionContext.ready;
    app.shell.activateById(panel.id);
    if (!panel.sessionContext.session) throw new Error('no kernel was started');
    const kernel = panel.sessionContext.session.kernel;
    await kernel.info;
    kernel.iopubMessage.connect((_, { header, parent_header, content }) => {
        if (header.msg_type !== 'error' || parent_header.msg_type !== 'comm_msg') return;
        console.error(`a widget failed in the kernel: ${content.ename}: ${content.evalue}`);
    });
}
"""
"""JupyterLab shows what a widget's callback raises in a log that nobody opens; here it counts as an error of the page."""

RUN_ALL = """
async () => {
    await window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs');
    await window.jupyterapp.commands.execute('notebook:run-all-cells');
}
"""

CELLS = """
() => [...window.labPanel.context.model.cells].filter(cell => cell.type === 'code').map(cell => ({
    source: cell.sharedModel.getSource(),
    execution_count: cell.executionCount,
    outputs: cell.outputs.toJSON(),
}))
"""

CAUGHT_UP = "async () => { await window.labPanel.sessionContext.session.kernel.requestKernelInfo(); }"
"""A kernel answers in turn: what widgets sent before has been dealt with."""

SHUT_DOWN = "async () => { await window.labPanel?.sessionContext.shutdown(); }"

HAS_THEME = "light => document.body.dataset.jpThemeLight === light"

SHOW_TOP = "() => { window.labPanel.content.outerNode.scrollTop = 0; }"

HEIGHT = """
() => {
    const notebook = window.labPanel.content;
    const bottom = Math.max(...notebook.widgets.map(cell => cell.node.getBoundingClientRect().bottom));
    return Math.ceil(bottom + notebook.outerNode.scrollTop) + 60;
}
"""
"""How high the window must be to show the whole notebook; cells that are hidden have no height."""
