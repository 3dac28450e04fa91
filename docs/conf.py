import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import pictures

import downhill_rms

project = "downhill_rms"
author = "the downhill_rms authors"
copyright = author
version = release = downhill_rms.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc"]
exclude_patterns = ["_build"]
nitpicky = False
default_role = "py:obj"

html_theme = "alabaster"
html_title = f"downhill_rms {release}"
html_theme_options = {
    "description": "RMSProp for losses written with PyTensor",
    "page_width": "1040px",
    "fixed_sidebar": True,
}
html_sidebars = {"**": ["about.html", "navigation.html", "searchbox.html"]}
html_show_sourcelink = False

# PyMC needs a newer Python than this package does; its models are described without it.
autodoc_mock_imports = [] if find_spec("pymc") else ["pymc"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings name the types

# Members are chosen in reference.rst.
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False


def setup(app):
    app.connect("builder-inited", lambda app: pictures.draw(Path(app.srcdir) / "_pictures"))
