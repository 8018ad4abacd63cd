"""What answers cost against how much is asked for: images in a batch, clients, classes of a model, models in a batch, labels that
no request had before.

    python3 bench/work.py PHOTOS
    python3 bench/work.py PHOTOS --only classes models

PHOTOS is a directory of JPEG files. Batches, clients and labels are measured on a ViT-B/32 with made-up weights; classes and models on
the made-up CLIP of jobs.py, ViT-B/32's feature width behind narrow towers, so that heads are not hidden behind the encoding. Models
are asked by turns by twice as many clients as there are images in a batch, and a batch waits until it is full, so that
each holds images of all of them: the mean size of the server's batches meanwhile is told. Prints Markdown, medians over the
rounds, in which all points of a table take turns. Needs Python 3.11 on Linux and no package.
"""

import argparse
import contextlib
import io
import itertools
import math
import os
import random
import tempfile
import time
import urllib.parse
import zipfile
from pathlib import Path

import jobs
import programs
from turns import by_turns

BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
CLIENTS = [1, 4, 16, 64, 256]
CLASSES = [10, 1_000, 20_000]
MODELS = [1, 10, 50, 200]
LABELS = [1, 10, 100]
# For models: one image of each.
FULL_BATCH = max(MODELS)
MANY_CLIENTS = 2 * FULL_BATCH
LARGE = "random:vit-b-32"
# So that each of many clients is answered a few times, at fifty images a second.
SECONDS_A_CLIENT = 0.07


def points(given, values, measure):
    """The medians of what was measured at each value."""
    return by_turns(given.rounds, {value: lambda value=value: measure(value) for value in values}).items()


def encode(given, batch):
    options = ["--shape", "vit-b-32", "--batch", batch, "--threads", given.threads, "--seconds", given.seconds]
    [found] = programs.bench(given.clipkeep, "encode", *options, "--json")
    return {"rate": found["images_per_second"]}


def ask(given, urls, clients, *options, seconds=0):
    """Images a second, p50 and p99 in milliseconds, and the heads of a batch in milliseconds, over so many seconds or more."""
    options = ["--clients", clients, "--seconds", max(seconds, given.seconds), *options]
    found = programs.bench_http(given.clipkeep, urls, given.photos, *options)
    latencies = found["milliseconds"]
    heads = found["stages"].get("heads, a batch", math.nan)
    return {"rate": found["images_per_second"], "p50": latencies["p50"], "p99": latencies["p99"], "heads": heads}


@contextlib.contextmanager
def serving(given, folder, backbone, *options):
    """A server where all clients' images may wait at once."""
    room = 2 * max(*CLIENTS, MANY_CLIENTS)
    options = ["--threads", given.threads, "--queue", room, "--max-requests", room, *options]
    with programs.Clipkeep(given.clipkeep, backbone, folder, *options) as server:
        yield server


def narrow(folder):
    """A backbone whose towers cost little."""
    backbone = Path(folder) / "backbone"
    jobs.make_backbone(backbone)
    return backbone


def archive(classes):
    """A zip with one picture a class."""
    noise = random.Random(classes)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for label in range(classes):
            out.writestr(f"train/label {label}/0.png", jobs.picture(noise))
    return file.getvalue()


def teach(server, model, classes):
    url = server.create(model, config={"strategy": "zero_shot"})
    server.learn(model, "all", archive(classes))
    return url


def batches(given, _):
    print("| images in a batch | images a second |\n|---|---|")
    for batch, of in points(given, BATCHES, lambda batch: encode(given, batch)):
        print(f"| {batch} | {of['rate']:.1f} |")


def clients(given, folder):
    with serving(given, folder, LARGE) as server:
        url = f"{server.url}/v1/models/default/classify?labels=cat,dog,tree"
        print("| clients | images a second | p50 | p99 |\n|---|---|---|---|")
        measure = lambda count: ask(given, [url], count, seconds=count * SECONDS_A_CLIENT)
        for count, of in points(given, CLIENTS, measure):
            print(f"| {count} | {of['rate']:.1f} | {of['p50']:.0f} ms | {of['p99']:.0f} ms |")


def classes(given, folder):
    with serving(given, folder, narrow(folder)) as server:
        urls = {count: [teach(server, f"classes-{count}", count)] for count in CLASSES}

        def measure(count):
            fresh, seen = ask(given, urls[count], 1), ask(given, urls[count], 1, "--repeat")
            many = ask(given, urls[count], 16, "--repeat")
            return {"fresh": fresh["p50"], "seen": seen["p50"], "rate": many["rate"]}

        print("| classes | p50 of one client, new images | p50, images seen before | images a second of 16 clients, seen before |")
        print("|---|---|---|---|")
        for count, of in points(given, CLASSES, measure):
            print(f"| {count:,} | {of['fresh']:.2f} ms | {of['seen']:.2f} ms | {of['rate']:,.0f} |")


def models(given, folder):
    # What a batch waits at most is long beside what it takes to be full, and short beside a measurement.
    options = ["--batch-size", FULL_BATCH, "--batch-millis", 10_000, "--batch-wait-micros", 300_000]
    with serving(given, folder, narrow(folder), *options) as server:
        urls = [teach(server, f"model-{number}", 10) for number in range(max(MODELS))]

        def measure(count):
            before = server.histogram("clipkeep_batch_size")
            found = ask(given, urls[:count], MANY_CLIENTS)
            images, number = (after - of for after, of in zip(server.histogram("clipkeep_batch_size"), before))
            return {**found, "batch": images / number}

        print(f"| models asked by turns | images in a batch | its heads | images a second of {MANY_CLIENTS} clients | p50 | p99 |")
        print("|---|---|---|---|---|---|")
        for count, of in points(given, MODELS, measure):
            line = f"{of['batch']:.0f} | {of['heads']:.2f} ms | {of['rate']:,.0f} | {of['p50']:.0f} ms | {of['p99']:.0f} ms"
            print(f"| {count} | {line} |")


def labels(given, folder):
    """Requests about one known image, so that labels are what takes time."""
    with serving(given, folder, LARGE) as server:
        model = server.create("labels").removeprefix(server.url)
        [photograph, *_] = programs.photographs(given.photos)
        image, numbers = photograph.read_bytes(), itertools.count()

        def classify(count):
            some = ",".join(f"label {number}" for number in itertools.islice(numbers, count))
            before = time.perf_counter()
            server.call("POST", f"{model}?labels={urllib.parse.quote(some)}", image, "image/jpeg")
            return 1e3 * (time.perf_counter() - before)

        classify(1)
        print("| labels never seen before | milliseconds |\n|---|---|")
        for count, of in points(given, LABELS, lambda count: {"ms": classify(count)}):
            print(f"| {count} | {of['ms']:.0f} |")


def main():
    parts = {part.__name__: part for part in [batches, clients, classes, models, labels]}
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
