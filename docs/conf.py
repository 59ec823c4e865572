"""Sphinx with MyST and furo.

Sphinx, because the reference comes from the docstrings and `-n -W` makes each name in it that leads nowhere an error;
MyST, because the same Markdown is read on the code host; furo, because it is plain and keeps working. Material for
MkDocs, the other candidate, has been in maintenance mode since November 2025.
"""

from __future__ import annotations

from importlib.metadata import version as installed

project = "dlock-suite"
author = "the dlock-suite authors"
release = version = installed("dlock-suite")
html_title = f"dlock-suite {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path: list[str] = []

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# A file that is not a page, such as an example's source, is a download.
suppress_warnings: list[str] = []

default_role = "code"
nitpicky = True
# What other projects document, whose inventories a build without a network cannot read.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(sqlalchemy|celery|django|flask|werkzeug|click|prometheus_client|opentelemetry|collections|contextlib|typing|datetime|threading|asyncio|pathlib|enum|logging)\..*",
    ),
]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

copybutton_exclude = ".linenos, .gp, .go"
