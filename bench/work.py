"""What answers cost against how much is asked for: images in a batch, clients, classes of a model, models.

    python3 bench/work.py PHOTOS
    python3 bench/work.py PHOTOS --only classes models

PHOTOS is a directory of JPEG files. Batches and clients are measured on a ViT-B/32 with made-up weights; classes and models on
the made-up CLIP of jobs.py, ViT-B/32's feature width behind narrow towers, so that heads are not hidden behind the encoding. Prints
Markdown, medians over the rounds. Needs Python 3.11 on Linux and no package.
"""

import argparse
import contextlib
import io
import json
import os
import random
import subprocess
import tempfile
import zipfile
from pathlib import Path
from statistics import median

import jobs

BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
CLIENTS = [1, 4, 16, 64, 256]
CLASSES = [10, 1_000, 20_000]
MODELS = [1, 10, 50, 200]
LARGE = "random:vit-b-32"


def last_object(command):
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def encode(given, batch):
    command = [given.clipkeep, "bench", "encode", "--shape", "vit-b-32", "--batch", str(batch), "--threads", str(given.threads)]
    return last_object([*command, "--json"])["images_per_second"]


def ask(given, urls, clients, repeat=False):
    """Images a second, and p50 and p99 in milliseconds."""
    command = [given.clipkeep, "bench", "http", *urls, "--json", "--images", given.photos, "--clients", str(clients)]
    found = last_object([*command, "--seconds", str(given.seconds), *["--repeat"] * repeat])
    if found["failures"]:
        raise SystemExit(f"{urls[0]} failed: {found['failures']}")
    return found["images_per_second"], found["milliseconds"]["p50"], found["milliseconds"]["p99"]


def options(given):
    """Of the server: all clients' images may wait at once."""
    room = str(2 * max(CLIENTS))
    return ["--threads", str(given.threads), "--queue", room, "--max-requests", room]


def medians(given, measure):
    runs = [measure() for _ in range(given.rounds)]
    return [median(values) for values in zip(*runs)]


def archive(classes):
    """A zip with one picture a class."""
    noise = random.Random(classes)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for label in range(classes):
            out.writestr(f"train/label {label}/0.png", jobs.picture(noise))
    return file.getvalue()


def teach(server, model, classes):
    config = {"name": model, "config": {"strategy": "zero_shot"}}
    server.call("POST", "/v1/models", json.dumps(config).encode())
    server.learn(model, "all", archive(classes))
    return f"http://{server.address}/v1/models/{model}/classify"


def batches(given, _):
    print("| images in a batch | images a second |\n|---|---|")
    for batch in BATCHES:
        (rate,) = medians(given, lambda: [encode(given, batch)])
        print(f"| {batch} | {rate:.1f} |", flush=True)


def clients(given, folder):
    server = jobs.Server(given.clipkeep, LARGE, folder, *options(given))
    try:
        print("| clients | images a second | p50 | p99 |\n|---|---|---|---|")
        url = f"http://{server.address}/v1/models/default/classify?labels=cat,dog,tree"
        for count in CLIENTS:
            rate, p50, p99 = medians(given, lambda: ask(given, [url], count))
            print(f"| {count} | {rate:.1f} | {p50:.0f} ms | {p99:.0f} ms |", flush=True)
    finally:
        server.stop()


@contextlib.contextmanager
def narrow(given, folder):
    """A server whose towers cost little."""
    jobs.make_backbone(Path(folder) / "backbone")
    server = jobs.Server(given.clipkeep, f"{folder}/backbone", folder, *options(given))
    try:
        yield server
    finally:
        server.stop()


def classes(given, folder):
    with narrow(given, folder) as server:
        print("| classes | p50 of one client, new images | p50, images seen before | images a second of 16 clients, seen before |")
        print("|---|---|---|---|")
        for count in CLASSES:
            url = teach(server, f"classes-{count}", count)
            _, fresh, _ = medians(given, lambda: ask(given, [url], 1))
            _, seen, _ = medians(given, lambda: ask(given, [url], 1, repeat=True))
            rate, _, _ = medians(given, lambda: ask(given, [url], 16, repeat=True))
            print(f"| {count:,} | {fresh:.2f} ms | {seen:.2f} ms | {rate:,.0f} |", flush=True)


def models(given, folder):
    with narrow(given, folder) as server:
        urls = [teach(server, f"model-{number}", 10) for number in range(max(MODELS))]
        print("| models asked by turns | images a second of 64 clients | p50 | p99 |\n|---|---|---|---|")
        for count in MODELS:
            rate, p50, p99 = medians(given, lambda: ask(given, urls[:count], 64))
            print(f"| {count} | {rate:,.0f} | {p50:.1f} ms | {p99:.1f} ms |", flush=True)


def main():
    parts = {part.__name__: part for part in [batches, clients, classes, models]}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    given = parser.parse_args()
    for part in given.only:
        with tempfile.TemporaryDirectory() as folder:
            parts[part](given, folder)
        print(flush=True)


if __name__ == "__main__":
    main()
