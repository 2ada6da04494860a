"""Inside each kernel: session, lanes, boundaries."""
