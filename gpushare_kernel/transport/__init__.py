"""The socket side shared by broker and client: framing, peers, pidfds, fd passing, memfd words."""
