"""Typed messages and their codec. Knows no socket."""
