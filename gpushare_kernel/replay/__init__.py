"""The core on a trace and a virtual clock: what would have happened under another policy."""
