"""The engine: model, scheduler and cache behind one step loop."""
