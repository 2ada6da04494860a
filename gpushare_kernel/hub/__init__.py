"""gpushare around a hub: which host a kernel goes to, and how hosts are asked."""
