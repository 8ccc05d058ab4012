"Package metadata from settings.ini, the one place where people edit it."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
names = ("interop", "jax", "lab", "serve", "browser", "dev")
extras = {name: cfg[f"{name}_requirements"].split() for name in names}
readme = here / "README.md"

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    author=cfg["author"],
    keywords=cfg["keywords"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={**extras, "all": sorted({r for e in extras.values() for r in e})},
    packages=[*find_packages(include=["interpkit", "interpkit.*"]), "interpkit.jobs"],
    package_dir={"interpkit.jobs": "nbs/jobs"},
    # the job notebooks travel in the wheel, and what a browser reads of the boards
    package_data={
        "interpkit": ["py.typed"],
        "interpkit.jobs": ["*.ipynb"],
        "interpkit.lab": ["static/*.js", "static/*.css"],
    },
    entry_points={"console_scripts": cfg["console_scripts"].split("\n")},
    zip_safe=False,
)
