"""The virtual environments that what is compared with is installed into, from PyPI."""

import importlib.util
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

# What serves and preprocesses.
SERVING = ("bench-http-venv", ["torch", "torchvision", "transformers", "litserve", "python-multipart", "pillow"])
INFINITY = ("bench-infinity-venv", ["infinity_emb[torch,vision,server,optimum]", "aiohttp"])


def python_with(name, packages):
    """The Python of the environment target/{name}, with these packages: installed unless they are there already."""
    directory = Path("target").absolute() / name
    python, stamp = directory / "bin" / "python", directory / "packages.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != packages:
        venv.create(directory, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        stamp.write_text(json.dumps(packages))
    return python


def enter(name, packages, needed=()):
    """Starts over in that environment, unless this Python has all that is named as needed of it."""
    if needed and all(importlib.util.find_spec(package) for package in needed):
        return
    python = python_with(name, packages)
    if Path(sys.prefix).resolve() != (Path("target") / name).resolve():
        os.execv(python, [str(python), *sys.argv])


def versions(python, *packages):
    """What that Python has of them: `torch 2.15.0, pillow 13.0.0`."""
    script = "import sys; from importlib.metadata import version; print(*(f'{of} {version(of)}' for of in sys.argv[1:]), sep=', ')"
    command = [python, "-c", script, *packages]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
