"""Where what is compared with is installed: in the Python that runs, or in virtual environments, from PyPI."""

import importlib.metadata
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

# What encodes, what serves and preprocesses, and infinity.
ENCODING = ("bench-venv", ["torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy"])
SERVING = ("bench-http-venv", ["torch", "torchvision", "transformers", "litserve", "python-multipart", "pillow"])
INFINITY = ("bench-infinity-venv", ["infinity_emb[torch,vision,server,optimum]", "aiohttp"])


def are_here(packages):
    """Whether this Python has them all, of any version; of `name[extra]` the name."""
    try:
        return all(importlib.metadata.distribution(package.partition("[")[0]) for package in packages)
    except importlib.metadata.PackageNotFoundError:
        return False


def python_with(name, packages):
    """This Python, if it has these packages, or that of the environment target/{name}: they are installed unless they are there already."""
    if are_here(packages):
        return Path(sys.executable)
    directory = Path("target").absolute() / name
    python, stamp = directory / "bin" / "python", directory / "packages.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != packages:
        venv.create(directory, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        stamp.write_text(json.dumps(packages))
    return python


def enter(name, packages, needed=None):
    """Starts over in that environment, unless this Python has what is needed of it, which is all where nothing else is said."""
    if are_here(needed or packages):
        return
    python = python_with(name, packages)
    if Path(sys.prefix).resolve() != (Path("target") / name).resolve():
        os.execv(python, [str(python), *sys.argv])


def versions(python, *packages):
    """What that Python has of them: `torch 2.15.0, pillow 13.0.0`."""
    script = "import sys; from importlib.metadata import version; print(*(f'{of} {version(of)}' for of in sys.argv[1:]), sep=', ')"
    command = [python, "-c", script, *packages]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
