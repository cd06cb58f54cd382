"""Settings of Sphinx, which builds these pages: ``make docs``."""

from lrp_compress import __version__

project = "lrp_compress"
release = __version__
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_typehints = "none"  # the signature has them, the text says what they mean
napoleon_google_docstring = False
myst_heading_anchors = 3
exclude_patterns = ["pictures"]
