"""One module a group of routes; each has `routes(runtime)`, which returns them."""
