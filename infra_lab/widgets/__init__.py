"""Live panels: a dataclass of knobs, a pure computation, a pure drawing, kept in step with each other."""
