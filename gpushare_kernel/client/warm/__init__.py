"""The warm tier: an idle notebook's tensors are copied into host memory, and their storages are empty until it goes on. See docs/warm.md."""
