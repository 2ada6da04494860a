"""One module per kind of device, behind the protocol in `base`."""
