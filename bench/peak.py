"""What the processor can do at most, as `cargo bench -p clipkeep-towers --bench peak` measures it."""

import json
import shutil
import subprocess
import sys

# What an image tower multiplies by, of which the processor has none, one or more.
INSTRUCTIONS = {
    "f32": ["vfmadd231ps-ymm", "vfmadd231ps-zmm"],
    "bf16": ["vdpbf16ps", "tdpbf16ps"],
    "int16": ["vpdpwssd"],
    "int8": ["vpdpbusd", "tdpbusd"],
}


def build():
    """The program that measures it; None where there is no cargo."""
    if not shutil.which("cargo"):
        print("the processor's peak is not measured: there is no cargo", file=sys.stderr)
        return None
    command = ["cargo", "bench", "--quiet", "--locked", "--package", "clipkeep-towers", "--bench", "peak"]
    command += ["--no-run", "--message-format", "json"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    [program] = [built["executable"] for built in map(json.loads, output.splitlines()) if built.get("executable")]
    return program


def operations_per_second(program, dtype, threads):
    """By the fastest instruction that a tower of this dtype may use; NaN where there is none."""
    command = [program, "--threads", str(threads), *INSTRUCTIONS[dtype]]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    rates = [json.loads(line)["operations_per_second"] for line in output.splitlines()]
    return max(rates, default=float("nan"))
