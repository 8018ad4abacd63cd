"""The virtual environments that what is compared with is installed into, from PyPI; and ports that nobody listens on."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import venv
from pathlib import Path

# What serves and preprocesses.
SERVING = ("bench-http-venv", ["torch", "torchvision", "transformers", "litserve", "python-multipart", "pillow"])
INFINITY = ("bench-infinity-venv", ["infinity_emb[torch,vision,server,optimum]", "aiohttp"])


def python_with(name, packages):
    """The Python of the environment target/{name}, with these packages: installed unless they are there already."""
    directory = Path("target") / name
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


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
