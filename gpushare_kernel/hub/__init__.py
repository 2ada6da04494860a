"""JupyterHub: who somebody is, and what its configuration does to notebooks."""
