"""Sphinx with MyST and furo.

Sphinx, because the reference comes from the docstrings and `-n -W` makes each name in it that leads nowhere an error;
MyST, because the same Markdown is read on the code host; furo, because it is plain and keeps working. Material for
MkDocs, the other candidate, has been in maintenance mode since November 2025.
"""

from __future__ import annotations

from importlib.metadata import version as installed
from typing import TYPE_CHECKING

import django
from django.conf import settings
from sphinx.addnodes import pending_xref

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "dlock-suite"
author = "the dlock-suite authors"
release = version = installed("dlock-suite")
html_title = f"dlock-suite {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path: list[str] = []

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# A file that is not a page, such as an example's source, is a download.
suppress_warnings: list[str] = []

default_role = "code"
nitpicky = True
# What other projects document; a build without a network cannot read their inventories. By the name in an annotation,
# or by the whole name where Sphinx knows it.
ELSEWHERE = (
    "AsyncEngine|Connection|Engine|MetaData|Session|Table|URL",  # SQLAlchemy
    "Celery|ImproperlyConfigured",
    "Flask|NamedSignal|Response|SQLAlchemy",
    "CollectorRegistry|MeterProvider|TracerProvider",  # prometheus_client, opentelemetry
    "ExitStack|datetime",
    "OnConflict|Scalar",  # two words; str, bytes or int: what a key is made of
    r"(celery|click|django|flask|sqlalchemy|werkzeug)\..+",
)
# Type variables: `F` is the function that a decorator returns as it was.
VARIABLES = r"(dlock_\w+\.([\w.]+\.)?)?([AFGLNRSTV]|T_co)"
nitpick_ignore_regex = [("py:.*", "|".join(ELSEWHERE)), ("py:class", VARIABLES)]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = False
python_maximum_signature_line_length = 88

copybutton_exclude = ".linenos, .gp, .go"

# The admin's classes can only be imported in a project.
APPS = ["contenttypes", "auth", "admin"]
settings.configure(INSTALLED_APPS=[*(f"django.contrib.{app}" for app in APPS), "dlock_django"])
django.setup()

# Users call these classes; all others come from a function, and their arguments are internal.
CALLED = {"AsyncLockProvider", "DLock", "LockProvider", "OpenTelemetryListener", "PrometheusListener"}


def hide_arguments(_app: Sphinx, what: str, name: str, *_: object) -> tuple[str, None] | None:
    """Show a class that users do not call without its arguments."""
    hidden = what in {"class", "exception"} and name.rpartition(".")[2] not in CALLED
    return ("", None) if hidden else None


def keep_columns(_app: Sphinx, _context: object, lines: list[str]) -> None:
    """Show what a command's help does not wrap as the terminal shows it."""
    shown: list[str] = []
    for line in lines:
        if not line.startswith("| "):
            shown.append(line)
        elif shown[-1].startswith("   "):
            shown.append(f"   {line[2:]}")
        else:
            shown += [".. code-block:: text", "", f"   {line[2:]}"]
    lines[:] = [*shown, ""]


def read_exactly(_app: Sphinx, doctree: nodes.document) -> None:
    """Let no name in an annotation mean whatever ends alike; `find_elsewhere` knows better."""
    for node in doctree.findall(pending_xref):
        node.attributes.pop("refspecific", None)


def find_elsewhere(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.reference | None:
    """Resolve a name that an annotation's module imports: from the core, or from beside it."""
    domain = env.domains.python_domain
    name, module = node["reftarget"], node.get("py:module") or ""
    package = module.partition(".")[0]
    alike = [one for one in domain.objects if one.endswith(f".{name}")]
    shared = [one for one in alike if one.startswith("dlock_core.adapters.")]
    found = [one for one in alike if one.startswith(f"{package}.") and one not in shared]
    found = found or shared or [one for one in alike if one.startswith("dlock_core.")]
    if f"dlock_core.{name}" in domain.objects:
        found = [f"dlock_core.{name}"]
    if node.get("refdomain") != "py" or len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, contnode)


def setup(app: Sphinx) -> None:
    """Connect them."""
    app.connect("autodoc-process-signature", hide_arguments)
    app.connect("sphinx-click-process-description", keep_columns)
    app.connect("doctree-read", read_exactly)
    app.connect("missing-reference", find_elsewhere)
