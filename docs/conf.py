"""How Sphinx makes a site of these pages.

    scripts/test tests/docs && .venv/bin/python -m sphinx -W docs build/docs
    # then open build/docs/index.html

The pages stay Markdown that reads well on GitHub: what the site adds (the menu, the reference of the command
line and of the Python API) is drawn from the program itself, and a warning is an error, so neither drifts.
"""

import click
from sphinx.application import Sphinx

import modelnet_p2p

project = "modelnet-p2p"
author = "the modelnet-p2p authors"
project_copyright = f"{author}, Apache-2.0"
release = version = modelnet_p2p.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
source_suffix = {".md": "markdown"}
exclude_patterns: list[str] = []

myst_heading_anchors = 3  # links such as security.md#who-can-read-my-prompt, as GitHub makes them
suppress_warnings = ["misc.highlighting_failure"]  # an output with `…` in it is not JSON

smartquotes = False  # in pages about commands, `--json` has two hyphens and a quote is straight
default_role = "literal"  # docstrings write `names` so
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = f"modelnet-p2p {release}"
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"


def examples_as_code(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """The examples below a command's help, which sphinx-click would set as verse."""
    if any(line.strip("| ") == "Examples:" for line in lines):
        commands = [text for line in lines if (text := line.strip("| ")) not in ("", "Examples:")]
        lines[:] = [".. code-block:: shell", "", *(f"   {command}" for command in commands), ""]


def setup(app: Sphinx) -> None:
    app.connect("sphinx-click-process-epilog", examples_as_code)
