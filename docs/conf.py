"""The documentation: `make docs` builds it into build/docs, and a warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from gpushare_kernel import __version__

project = "gpushare"
author = "the gpushare contributors"
copyright = author  # noqa: A001  Sphinx's name for it
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxcontrib.mermaid",
    "generated",
]
exclude_patterns = ["_ext"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
# A fence that is no language is shown as it is: terminals, drawings.
highlight_language = "none"

# The frameworks are imported by few of our modules, and none is needed to read their docstrings.
autodoc_mock_imports = ["torch", "scipy", "safetensors", "tqdm", "cloudpickle", "matplotlib"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
default_role = "code"
smartquotes = False  # --json is two dashes
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False
mermaid_fullscreen = False
mermaid_height = "auto"

html_theme = "furo"
html_title = f"gpushare {version}"
html_static_path = ["_static"]
html_css_files = ["gpushare.css"]
html_show_sphinx = False
html_theme_options = {
    f"{ground}_css_variables": {
        f"color-{what}": colour
        for what in ("brand-primary", "brand-content", "api-name", "api-pre-name")
    }
    for ground, colour in (("light", "#1b6e4f"), ("dark", "#6fd3a8"))
}
copybutton_prompt_text = "$ "
