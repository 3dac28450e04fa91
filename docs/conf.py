import os
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import pictures
import pytensor
from sphinx.util.nodes import make_refnode
from sphinx_gallery.sorting import ExplicitOrder

import downhill_rms

# Numba would compile each example's graphs for half a minute: the build shows what they compute,
# not how fast.
pytensor.config.mode, pytensor.config.cxx = "FAST_COMPILE", ""

project = "downhill_rms"
author = "the downhill_rms authors"
copyright = author
version = release = downhill_rms.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "mathml",
]
exclude_patterns = ["_build"]
default_role = "py:obj"

html_theme = "pydata_sphinx_theme"
html_title = f"downhill_rms {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": f"downhill_rms {release}"},
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "header_links_before_dropdown": 5,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# Pages that have no pages below them need no list of these.
ALONE = ("index", "reference", "performance", "mathematics")
html_sidebars = {page: [] for page in ALONE}

# PyMC needs a newer Python than this package does; its models are described without it.
autodoc_mock_imports = [] if find_spec("pymc") else ["pymc"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings name the types

# Members are chosen in reference.rst.
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# With DOWNHILL_RMS_DOCS_ONLINE=1 names of other libraries link to their documentation. Without it
# the build asks no other machine for anything, and these names are text.
nitpicky = True
OTHERS = {
    "jax": ("https://docs.jax.dev/en/latest/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "pymc": ("https://www.pymc.io/projects/docs/en/stable/", None),
    "pytensor": ("https://pytensor.readthedocs.io/en/latest/", None),
    "python": ("https://docs.python.org/3/", None),
}
intersphinx_mapping = OTHERS if os.environ.get("DOWNHILL_RMS_DOCS_ONLINE") == "1" else {}
nitpick_ignore_regex = [(r"py:.*", rf"({'|'.join(OTHERS)})\..*"), (r"py:.*", "logging")]

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "gallery"
ORDER = [
    "first_steps.py",
    "digits.py",
    "matrix_factorisation.py",
    "schedule.py",
    "telemetry.py",
    "trained_model.py",
    "text_lstm.py",
    "transformer.py",
    "larger_than_memory.py",
    "sweep.py",
    "many_devices.py",
    "porting_downhill.py",
    "pymc_minibatches.py",
    "*",
]
NEEDS = {"pymc": "pymc_minibatches", "jax": "many_devices"}
LACKING = [script for package, script in NEEDS.items() if not find_spec(package)]
sphinx_gallery_conf = {
    "examples_dirs": str(EXAMPLES),
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": "|".join(["__init__", *LACKING]),
    "within_subsection_order": ExplicitOrder(ORDER),
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,  # how long it took in FAST_COMPILE says nothing
    "write_computation_times": False,
    "download_all_examples": True,
    "image_scrapers": ("matplotlib", "pictures.last_figure"),
    "ignore_repr_types": r"matplotlib",
    "thumbnail_size": (400, 280),
}


def resolve_short_name(app, env, node, contnode):
    """Link `Trainer` on any page: the shortest of the names that end so."""
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    matches = domain.find_obj(env, None, None, node["reftarget"], None, 1)
    if not matches:
        return None
    name, found = min(matches, key=lambda match: (len(match[0]), match[0]))
    here = node.get("refdoc", "")
    return make_refnode(app.builder, here, found.docname, found.node_id, contnode, name)


def setup(app):
    app.connect("builder-inited", lambda app: pictures.draw(Path(app.srcdir) / "_pictures"))
    app.connect("missing-reference", resolve_short_name)
