"""The first statement of a plain cell on a GPU: a call of ours, put into its syntax tree.

Unlike an event's callback it is part of the cell: an exception in it stops the cell. Line numbers, the
last expression and `await` stay as they are.
"""

from __future__ import annotations

import ast
from typing import Any

from gpushare_magics.cells import Cells


class PlainNode(ast.NodeTransformer):
    """What IPython calls for each syntax tree before it runs it (`%timeit` hands in trees of its own)."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells

    def visit(self, node: ast.AST) -> Any:
        """Return the tree, with our call first where a plain cell is about to begin."""
        if isinstance(node, ast.Module) and node.body and self._cells.take_node():
            call = ast.parse("__import__('gpushare_magics').begin()").body[0]
            for part in ast.walk(call):
                ast.copy_location(part, node.body[0])
            node.body.insert(0, call)
        return node
