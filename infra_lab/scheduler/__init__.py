"""Requests, the token budget, and who gets it: plain Python on an injected clock, no torch."""
