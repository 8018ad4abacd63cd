"""What each dtype gives: `clipkeep bench encode` in all of them, runs that take turns, so that what `auto` takes can be held against
what it leaves.

    python3 bench/dtypes.py --images PHOTOS
    python3 bench/dtypes.py --backbones random:vit-b-32 embedded --batches 1 32

Prints images a second, medians over the rounds, and the smallest cosine of features with those in f32: of noise or, with --images, of
256 photographs at most. Needs Python 3.11 and no package.
"""

import argparse
import os

import programs
from turns import by_turns

DTYPES = ["f32", "bf16", "int16", "int8", "auto"]
BACKBONES = ["random:vit-b-32", "random:vit-b-16", "random:vit-l-14", "embedded"]


def encode(given, backbone, dtype, *options):
    options = ["--backbone", backbone, "--dtype", dtype, "--threads", given.threads, "--batch", *given.batches, *options]
    return programs.bench(given.clipkeep, "encode", *options, "--json")


def rates(given, backbone, dtype):
    """Images a second by the size of the batch."""
    return {of["batch"]: of["images_per_second"] for of in encode(given, backbone, dtype, "--seconds", given.seconds)}


def nearest(given, backbone, dtype):
    """The instructions, and the smallest cosine of any batch."""
    images = ["--images", given.images] if given.images else []
    found = encode(given, backbone, dtype, "--seconds", 0.01, "--cosine", *images)
    return found[0]["instructions"], min(of["cosine"] for of in found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="PHOTOS", help="a directory of JPEG files")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="(default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="(default: all)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    given = parser.parse_args()
    columns = ["backbone", "dtype", *(f"batch {batch}" for batch in given.batches), "cosine", "instructions"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for backbone in given.backbones:
        measures = {dtype: lambda dtype=dtype: rates(given, backbone, dtype) for dtype in given.dtypes}
        for dtype, found in by_turns(given.rounds, measures).items():
            instructions, cosine = nearest(given, backbone, dtype)
            numbers = [*(f"{found[batch]:.1f}" for batch in given.batches), f"{cosine:.6f}"]
            print(f"| {' | '.join([backbone, dtype, *numbers, instructions])} |", flush=True)


if __name__ == "__main__":
    main()
