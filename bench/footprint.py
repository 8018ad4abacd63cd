"""How soon a clipkeep server with a ViT-B/32 on disk is ready, and how much memory it holds while it answers.

    python3 bench/footprint.py PHOTOS
    python3 bench/footprint.py PHOTOS --cold --requests 0

PHOTOS is a directory of JPEG files. Makes a checkpoint with made-up weights by make_clip.py, in serving.py's virtual environment,
and starts a server on it five times, each with a data directory of its own, while the file is in memory, or with --cold after the
system was told to forget it: seconds from its start to a
200 from /readyz, resident memory then, and its peak until then. To the last of them 64 clients send images that are all new, in
slices of so many seconds, until 10,000 are answered; after each slice resident memory (VmRSS) is read. The limit it is held against
is 1.3 times the checkpoint's file and 300 MB. A MB is 10^6 bytes. The server remembers features of images, 2 KB each, until they fill
what it may take for them: with --feature-cache-mib 0 nothing grows with the images but what ought not to. Needs Linux.
"""

import argparse
import contextlib
import os
import tempfile
from pathlib import Path
from statistics import median

import environment
import programs

WEIGHTS = "model.safetensors"
CLIENTS = 64
PER_WEIGHTS, BESIDE_WEIGHTS = 1.3, 300e6


def forget(file):
    """Has the system read a file from the disk again, as far as it listens."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def start(given, clip, data):
    data.mkdir()
    if given.cold:
        forget(clip / WEIGHTS)
    options = ["--threads", given.threads, "--dtype", given.dtype, "--feature-cache-mib", given.feature_cache_mib]
    return programs.Clipkeep(given.clipkeep, clip, data, *options)


def print_start(name, seconds, resident, peak):
    print(f"| {name} | {seconds:.2f} s | {resident / 1e6:.0f} MB | {peak / 1e6:.0f} MB |", flush=True)


def starts(given, clip, folder, stack):
    """Starts as many servers, one after another; gives the last one, which runs until the stack is closed."""
    print("| start | ready after | resident | peak |\n|---|---|---|---|")
    found, server = [], None
    for number in range(1, given.rounds + 1):
        if server:
            server.stop()
        server = stack.enter_context(start(given, clip, folder / f"data-{number}"))
        found.append((server.seconds_to_ready, server.memory("VmRSS"), server.memory("VmHWM")))
        print_start(number, *found[-1])
    print_start("median", *map(median, zip(*found)))
    return server


def answered(server):
    _, images = server.histogram("clipkeep_decode_seconds")
    return int(images)


def series(given, server, limit):
    """Resident memory by the images that were answered."""
    print("\n| images answered | resident | of the limit |\n|---|---|---|")
    found, first, images = [], answered(server), 0
    url = f"{server.url}/v1/models/default/classify?labels=cat,dog,tree"
    while True:
        resident = server.memory("VmRSS")
        found.append((images, resident))
        print(f"| {images:,} | {resident / 1e6:.0f} MB | {resident / limit:.2f} |", flush=True)
        if images >= given.requests:
            return found
        options = ["--clients", CLIENTS, "--seconds", given.seconds, "--warm-up", 0.001]
        programs.bench_http(given.clipkeep, [url], given.photos, *options)
        images = answered(server) - first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", choices=["auto", "f32", "bf16", "int16", "int8"], default="auto", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="starts (default: %(default)s)")
    parser.add_argument("--cold", action="store_true", help="read the weights from the disk")
    parser.add_argument("--feature-cache-mib", type=int, default=64, help="of the server (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="of a slice (default: %(default)s)")
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    given = parser.parse_args()
    python = environment.python_with(*environment.SERVING)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        clip = Path(folder) / "clip"
        programs.make_clip(python, clip)
        weights = (clip / WEIGHTS).stat().st_size
        limit = PER_WEIGHTS * weights + BESIDE_WEIGHTS
        found = series(given, starts(given, clip, Path(folder), stack), limit)
    most, (images, last) = max(resident for _, resident in found), found[-1]
    half = next(resident for so_far, resident in found if so_far >= images / 2)
    print(f"\nThe weights are {weights / 1e6:.0f} MB, so the limit is {PER_WEIGHTS} × that + 300 MB = {limit / 1e6:.0f} MB.")
    print(f"Resident / limit: {last / limit:.2f} at the end, {most / limit:.2f} at most.")
    print(f"Growth over the second half of the images: {(last - half) / 1e6:+.0f} MB.")


if __name__ == "__main__":
    main()
