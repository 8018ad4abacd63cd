"""Where the time of `clipkeep bench encode` goes on a processor, by kind of work: a profile of samples.

    python3 bench/shares.py vit-b-32 bf16 12

Needs perf (Debian: linux-perf), addr2line and readelf (binutils), and a program with its line tables, as `cargo build --release`
makes it, of the sources as they lie here: many steps are compiled from functions of one name, and told apart by the lines of code.
Samples are by the clock, since virtual machines often have no other counter; those of the last seconds count, in which nothing but
batches is computed. Products are those of attention, too, which the samples cannot tell from the others.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

from programs import HERE

HERTZ = 997
TOWERS = "crates/towers/src/"
# Of a sample, the first that is found in any of the functions that are inlined there: its file, its name and the item around it.
KINDS = [
    ("transposition of keys", r" transpose_keys "),
    ("softmax and attention", r"Softmax|^attention\.rs"),
    ("norms", r"LayerNorm|Norm<|Piece<"),
    ("activations", r"Activate| activate |gelu"),
    ("sums of halves", r"AddPairs|Add<| add_pairs | add |^strassen\.rs"),
    ("rounding and packing", r"Round|Narrow|Measure| round | measure | narrow_"),
    ("products", r"^(x86|tiles|amx|dots|lanes|matrix|kernel|crossed|prefetch)\.rs"),
    ("rounding and packing", r"^(elementwise|operand|integer|blocks|image)\.rs"),
]
OTHER = "other"


def record(given, to):
    """Gives the path of the program that ran."""
    command = ["perf", "record", "--quiet", "--event", "cpu-clock", "--freq", HERTZ, "--output", to, "--"]
    command += [given.clipkeep, "bench", "encode", "--shape", given.shape, "--dtype", given.dtype, "--batch", given.batch]
    command += ["--threads", given.threads, "--device", "cpu", "--seconds", given.seconds]
    subprocess.run([str(part) for part in command], check=True)
    return str(Path(given.clipkeep).resolve())


def samples(recorded, program, seconds):
    """Of the last seconds: addresses in the program, as its file counts them, or None elsewhere."""
    headers = output("readelf", "--program-headers", "--wide", program)
    code = re.search(r"LOAD +0x(\w+) 0x(\w+) .* R E ", headers)
    offset, address = (int(number, 16) for number in code.groups())
    start, found = None, []
    for line in output("perf", "script", "--input", recorded, "--fields", "time,ip,dso", "--show-mmap-events").splitlines():
        mapped = re.search(r"\[0x(\w+)\(\w+\) @ (\w+) .* r-xp (.*)$", line)
        sample = re.match(r" *([\d.]+): +(\w+) \((.*)\)$", line)
        if mapped and mapped[3] == program:
            start = int(mapped[1], 16) - int(mapped[2], 16) + offset - address
        elif sample:
            found.append((float(sample[1]), int(sample[2], 16) - start if sample[3] == program else None))
    begun = max(time for time, _ in found) - seconds
    return [address for time, address in found if time > begun]


def places(program, addresses):
    """For each of the addresses the lines of the functions that are inlined there, as `path:line`."""
    command = ["addr2line", "--inlines", "--addresses", "--exe", program]
    text = subprocess.run(command, input="\n".join(map(hex, addresses)), check=True, stdout=subprocess.PIPE, text=True).stdout
    found = {}
    for line in text.splitlines():
        if line.startswith("0x"):
            of = found.setdefault(int(line, 16), [])
        else:
            of.append(line)
    return found


@cache
def function(path, number):
    """The file, name and item of the function that a line of the towers lies in; of line 0, which is unknown, the file alone."""
    lines = (HERE.parent / TOWERS / path).read_text().splitlines()[:number]
    names = [found[1] for found in (re.search(r"\bfn (\w+)", line) for line in lines) if found]
    items = [line for line in lines if re.match(r"(pub.* )?(impl|fn|unsafe fn)\b| {4}for [A-Z]", line)]
    return f"{path} {' '.join(names[-1:])} {' '.join(items[-1:])}"


def kind(lines):
    inside = [re.search(rf"{TOWERS}([\w/]+\.rs):(\d*)", line) for line in lines]
    functions = [function(found[1], int(found[2] or 0)) for found in inside if found]
    kinds = (name for name, sign in KINDS if any(re.search(sign, function) for function in functions))
    return next(kinds, OTHER)


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=["vit-b-32", "vit-b-16", "vit-l-14"])
    parser.add_argument("dtype", choices=["auto", "f32", "bf16", "int16", "int8"])
    parser.add_argument("batch", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=5.0, help="that count (default: %(default)s)")
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    given = parser.parse_args()
    for tool, package in [("perf", "linux-perf"), ("addr2line", "binutils"), ("readelf", "binutils")]:
        if not shutil.which(tool):
            sys.exit(f"missing: {tool} (Debian: {package})")
    with tempfile.TemporaryDirectory() as folder:
        recorded = str(Path(folder) / "perf.data")
        program = record(given, recorded)
        found = Counter(samples(recorded, program, given.seconds))
    lines = places(program, found.keys() - {None})
    shares = Counter()
    for address, count in found.items():
        shares[kind(lines.get(address, []))] += count
    print(f"\n{shares.total():,} samples\n\n| kind of work | share |\n|---|---|")
    for name in dict.fromkeys([*(name for name, _ in KINDS), OTHER]):
        print(f"| {name} | {100 * shares[name] / shares.total():.1f} % |")


if __name__ == "__main__":
    main()
