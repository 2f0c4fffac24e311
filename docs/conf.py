"The site: README, recipes, notebooks and the API reference, read where they lie (`make docs`)"
from __future__ import annotations

import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import fsc_fastai.all  # noqa: E402, F401  adds its methods to the learner
from docs.docments import reference_docstring, skip_member  # noqa: E402
from docs.reference import write_pages  # noqa: E402

settings = ConfigParser(delimiters=['='])
settings.read(ROOT/'settings.ini', encoding='utf-8')

write_pages(ROOT/'docs'/'api')

project, author, release = (settings['DEFAULT'][key] for key in ('lib_name', 'author', 'version'))
copyright = author
root_doc = 'docs/index'
include_patterns = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'docs/**.md', 'nbs/*.ipynb', 'results/**/*.md',
                    'benchmarks/*.md']
exclude_patterns = ['.*', '**/.*', 'build', 'fsc_fastai', 'tests', 'demo_out', '*.egg-info']
extensions = ['sphinx.ext.autodoc', 'myst_nb']
html_theme, html_title = 'furo', project
html_show_sphinx = False

# What is in the reference must be found; types of other libraries are not linked, for that would take a network
nitpicky = True
nitpick_ignore_regex = [(r'py:.*', r'(?!fsc_fastai\.).*'), (r'py:.*', r'fsc_fastai\..*\._\w+')]
autodoc_default_options = {'members': True, 'member-order': 'bysource', 'show-inheritance': True}
autodoc_typehints, autodoc_typehints_description_target = 'description', 'documented'
python_use_unqualified_type_names = True
nb_execution_mode = 'off' # `make notebooks` runs them
myst_heading_anchors = 3
myst_enable_extensions = ['dollarmath']


def setup(app: Any) -> None:
    app.connect('autodoc-process-docstring', reference_docstring)
    app.connect('autodoc-skip-member', skip_member)
