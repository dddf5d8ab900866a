"""Sphinx: the pages of this repository and the docstrings of `vhp_jax` as one site.

The source directory is the root of the repository, so that a link between README, docs
and results is the same on the site as in the file.
"""

import re
from pathlib import Path

from docutils import nodes

project = "vhp_jax"
PRIVATE = "jaxlib._jax."
extensions = ["myst_parser", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
include_patterns = ["*.md", "docs/**.md", "docs/generated/*.rst", "results/README.md"]
root_doc = "README"
templates_path = [str(Path(__file__).parent / "_templates")]

html_theme = "furo"
html_title = project
html_extra_path = ["_static/index.html"]  # from / to README.html
html_show_copyright = False
python_maximum_signature_line_length = 72

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

default_role = "code"  # as in Markdown
add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # docstrings say more than "Array"

CONTENTS = """
```{toctree}
:hidden:
:caption: How to

docs/howto/choose_kappa
docs/howto/add_data_set
docs/howto/add_prior
docs/howto/add_beta_scheme
docs/devices
docs/howto/reproduce_tables
```

```{toctree}
:hidden:
:caption: Experiments

docs/pendulum
docs/motion
docs/faces
docs/likelihood
docs/speed
results/README
```

```{toctree}
:hidden:
:caption: Reference

docs/notation
docs/api
CONTRIBUTING
CHANGELOG
```
"""


def add_contents(app, docname, source):
    """Gives the front page, which is the README, the contents of the site."""
    if docname == root_doc:
        source[0] += CONTENTS


def escape(app, what, name, obj, options, lines):
    """Docstrings are plain text: [*batch, D] is no emphasis, |p|^2 no substitution."""
    lines[:] = [re.sub(r"(?<!`)([*|])(?=\w)", r"\\\1", line) for line in lines]


def skip(app, what, name, obj, skipped, options):
    """Fields of a NamedTuple, which its docstring has; what scikit-learn adds."""
    added = re.fullmatch(r"[gs]et_(metadata_routing|\w+_request)", name)
    field = (getattr(obj, "__doc__", None) or "").startswith("Alias for field number")
    return True if added or field else None


def shorten(app, doctree):
    """Array, not the module of JAX that it comes from."""
    for text in list(doctree.findall(nodes.Text)):
        if PRIVATE in text:
            text.parent.replace(text, nodes.Text(text.replace(PRIVATE, "")))


def setup(app):
    """Connects them."""
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", escape, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", shorten)
