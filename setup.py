"Package metadata, read from settings.ini so that it is written down once"
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords=cfg['keywords'],
    packages=find_packages(include=['fsc_fastai', 'fsc_fastai.*']),
    package_data={'fsc_fastai': ['py.typed']},
    classifiers=['Development Status :: 4 - Beta', 'Intended Audience :: Developers', 'Intended Audience :: Science/Research',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Typing :: Typed',
                 *(f'Programming Language :: Python :: {version}' for version in cfg['tried_python'].split())],
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={extra: cfg[f'{extra}_requirements'].split() for extra in
                    ('dev', 'docs', 'bench', 'onnx', 'serve', 'distributed', 'lora')},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    zip_safe=False,
)
