"""The part that decides: events in, instructions out. Pure and deterministic (I10)."""
