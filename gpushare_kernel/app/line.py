"""The line that commands and the demo ask on: the client's, where the live view has it too."""

from gpushare_kernel.client.line import Line

__all__ = ["Line"]
