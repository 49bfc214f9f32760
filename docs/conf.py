"""Settings of the site that `make docs` builds: Sphinx, with MyST-NB for pages and notebooks, and furo's look."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]
# Kernels of the notebooks import this checkout, too, and ask no server for models.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(DOCS.parent), os.environ.get("PYTHONPATH")]))
os.environ["HF_HUB_OFFLINE"] = "1"
# A bar appears after ten seconds, so it would depend on the machine.
os.environ["TQDM_DISABLE"] = "1"

project = "mechmem"
author = "The mechmem maintainers"
release = "0.1.0"
html_title = "mechmem"
copyright = author

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "site_checks",
    "site_reference",
]
exclude_patterns = ["_site", "_doctrees", "_executed", "jupyter_execute", "**.ipynb_checkpoints"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# Executed once; a second build reads the results of notebooks whose code is the same.
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS / "_executed")
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_merge_streams = True
# Progress bars of a slow machine; tests refuse any other text there.
nb_output_stderr = "remove"
# The kernel is the environment that builds the site, under whatever name it is registered.
nb_kernel_rgx_aliases = {".*": "python3"}

# Docstrings put names and formulas between single backticks.
default_role = "code"
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
# Types in signatures are mostly other packages', whose references lie on servers. What links name is checked.
nitpick_ignore_regex = [(r"py:(class|obj|data|exc)", r".*")]

html_theme = "furo"
html_static_path = [str(DOCS / "_static")]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
