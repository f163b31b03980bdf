"""Which folder is which package; everything else is in pyproject.toml.

`converters/` is a folder of its own in the repository and the package
`leapjax.converters` once installed, so that nothing generic lands in site-packages.
"""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["leapjax", "leapjax.*"])
    + ["leapjax.converters"]
    + [f"leapjax.converters.{name}" for name in find_packages("converters")],
    package_dir={"leapjax.converters": "converters"},
)
