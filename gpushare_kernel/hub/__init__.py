"""Around a hub: who somebody is, what its configuration does to notebooks, what pages are shown, which host a kernel goes to."""
