"""Which folder is which package; everything else is in pyproject.toml.

`converters/` is a folder of its own in the repository and the package
`leapjax.converters` once installed, so that nothing generic lands in site-packages.
Folders of data count as packages too: setuptools warns of each that is left out.
"""

from setuptools import find_namespace_packages, find_packages, setup

setup(
    packages=find_namespace_packages(include=["leapjax", "leapjax.*"])
    + ["leapjax.converters"]
    + [f"leapjax.converters.{name}" for name in find_packages("converters")],
    package_dir={"leapjax.converters": "converters"},
)
