"""Compares a clipkeep server with the usual Python ones over HTTP: a JPEG in, answer out, the same ViT-B/32 with made-up weights, the
same threads and clients, runs that take turns.

    python3 bench/serving.py PHOTOS --dtype bf16
    OMP_WAIT_POLICY=PASSIVE python3 bench/serving.py PHOTOS --dtype bf16 --clients 64
    python3 bench/serving.py PHOTOS --dtype bf16 --device cuda:0 --clients 1 64 256 --litserve-batch 64 --peers litserve infinity

PHOTOS is a directory of JPEG files. LitServe runs PyTorch as it is, compiled by it, and compiled in as many processes as there are threads, each
with a model of its own: that takes a compiler for C++ and a minute or two before those are ready (--peers leaves some out). clipkeep and LitServe take a form and answer with probabilities, infinity takes JSON and
answers with an embedding. Installs the others from PyPI into target/ the first time, unless this Python has them. Prints medians over
the rounds, and ours over the best of the others.

The threads of PyTorch wait busily for one another, so that with anything else at work on the cores it is many times slower: measure on
a quiet machine, and compare with OMP_WAIT_POLICY=PASSIVE in the environment, which all servers get.

In each round it also measures what clipkeep could do at most, while no server runs: the encode limit is the pace of `clipkeep
bench encode` with the same checkpoint, dtype and threads, in batches of 32; the decode limit that of `clipkeep bench preprocess`
over the photographs, which are sent as they are, times the threads. The stages that a busy server tells would not do for that: the
threads that encode take the cores from those that decode. Ours over the smaller of the two counts with the most clients. Both
limits are of all cores, and a server needs them for both, and for HTTP, so that no server should reach 1.
"""

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import urllib.parse
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import environment
import programs
from turns import by_turns

LABELS = ",".join(f"label {number}" for number in range(10))
ENVELOPE = json.dumps({"model": "clip", "modality": "image", "input": ["data:image/jpeg;base64,{}"]})
FORM = ["--form", "image"]
LIMIT_BATCH = 32
# For each photograph; five times are measured in any case.
DECODE_SECONDS = 0.02


class Contender(NamedTuple):
    """A server, and how `clipkeep bench http` sends it an image."""

    server: programs.Server
    url: str
    body: list


def clipkeep(given, clip, folder):
    # No image comes twice, so that a cache would only cost.
    room = max(256, 2 * max(given.clients))
    options = ["--threads", given.threads, "--dtype", given.ours, "--device", given.device, "--feature-cache-mib", 0]
    options += ["--max-requests", room, "--queue", room]
    server = programs.Clipkeep(given.clipkeep, clip, folder, *options, env=environ(given))
    return Contender(server, f"{server.url}/v1/models/default/classify?labels={urllib.parse.quote(LABELS)}", FORM)


def litserve(given, clip, _, python, name="litserve", options=()):
    port = programs.free_port()
    at = f"http://127.0.0.1:{port}"
    command = [python, programs.HERE / "litserve_clip.py", clip, "--port", port, "--dtype", given.dtype, "--threads", given.threads]
    command += ["--device", given.device, "--batch", given.litserve_batch, *options]
    server = programs.Server(name, command, f"{at}/health", env=environ(given))
    return Contender(server, f"{at}/predict", FORM)


def infinity(given, clip, folder, python):
    port = programs.free_port()
    at = f"http://127.0.0.1:{port}"
    dtype = {"f32": "float32", "bf16": "bfloat16"}[given.dtype]
    kind, _, number = given.device.partition(":")
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    command = [shutil.which("infinity_emb", path=path), "v2", "--model-id", clip, "--served-model-name", "clip", "--host", "127.0.0.1"]
    command += ["--port", port, "--engine", "torch", "--device", kind, "--dtype", dtype, "--no-bettertransformer"]
    command += ["--device-id", number] if number else []
    # It leaves files where it is started, and among the temporary ones.
    env = {**environ(given), "TMPDIR": folder}
    server = programs.Server("infinity", command, f"{at}/health", env=env, cwd=folder)
    return Contender(server, f"{at}/embeddings", ["--envelope", ENVELOPE])


COMPILED = partial(litserve, name="litserve, compiled", options=["--compile"])
WORKERS = partial(litserve, name="litserve, workers", options=["--compile", "--worker-per-thread"])
# How each is started, the environment that it takes, and its package there.
PEERS = {
    "litserve": (litserve, environment.SERVING, "litserve"),
    "litserve-compiled": (COMPILED, environment.SERVING, "litserve"),
    "litserve-workers": (WORKERS, environment.SERVING, "litserve"),
    "infinity": (infinity, environment.INFINITY, "infinity_emb"),
}


def environ(given):
    return {**os.environ, "OMP_NUM_THREADS": str(given.threads)}


def ask(given, contenders, contender, clients):
    only(contender, contenders)
    options = ["--clients", clients, "--seconds", given.seconds, *contender.body]
    found = programs.bench_http(given.clipkeep, [contender.url], given.photos, *options)
    return {"rate": found["images_per_second"], "p50": found["milliseconds"]["p50"], "p99": found["milliseconds"]["p99"]}


def only(running, contenders):
    """The others must not take a core meanwhile, not even by waiting busily."""
    for contender in contenders:
        contender.server.pause()
    if running:
        running.server.go_on()


def limits(given, contenders, clip):
    only(None, contenders)
    ours = ["--backbone", clip, "--dtype", given.ours, "--device", given.device, "--threads", given.threads]
    encode = [*ours, "--batch", LIMIT_BATCH, "--images", given.photos, "--seconds", given.seconds, "--json"]
    [encoded] = programs.bench(given.clipkeep, "encode", *encode)
    photos = programs.photographs(given.photos)
    decoded = programs.bench(given.clipkeep, "preprocess", *ours, "--seconds", DECODE_SECONDS, *photos)
    one_thread = 1e3 / mean(photo["milliseconds"] for photo in decoded)
    return {"decode": given.threads * one_thread, "encode": encoded["images_per_second"]}


def compare(given, contenders, clip, clients):
    measures = {of.server.name: lambda of=of: ask(given, contenders, of, clients) for of in contenders}
    found = by_turns(given.rounds, {**measures, "limits": lambda: limits(given, contenders, clip)})
    most = found.pop("limits")
    for name, of in found.items():
        print(f"| {clients} | {name} | {of['rate']:.1f} | {of['p50']:.1f} | {of['p99']:.1f} |")
    ours, theirs = found.pop("clipkeep"), found.values()
    rate, p50 = max(of["rate"] for of in theirs), min(of["p50"] for of in theirs)
    print(f"| {clients} | ours / best of theirs | {ours['rate'] / rate:.2f} | {ours['p50'] / p50:.2f} | |")
    for name, limit in most.items():
        print(f"| {clients} | {name} limit | {limit:.1f} | | |")
    share = ours["rate"] / min(most.values())
    print(f"| {clients} | ours / min(decode limit, encode limit) | {share:.2f} | | |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="of all (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="of all: cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="(default: all)")
    parser.add_argument("--litserve-batch", type=int, default=8, help="images at most (default: %(default)s)")
    parser.add_argument("--ours", choices=["auto", "f32", "bf16", "int16", "int8"], help="clipkeep's dtype, if another")
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    given = parser.parse_args()
    given.ours = given.ours or given.dtype
    starts = [partial(clipkeep, given)]
    for name in given.peers:
        start, needs, package = PEERS[name]
        python = environment.python_with(*needs)
        print(environment.versions(python, package, "torch", "torchvision", "transformers", "pillow"))
        starts.append(partial(start, given, python=python))
    print()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        clip = Path(folder) / "clip"
        programs.make_clip(python, clip)
        contenders = []
        for start in starts:
            contenders.append(start(clip, folder))
            stack.enter_context(contenders[-1].server)
        print("| clients | server | images a second | p50 ms | p99 ms |\n|---|---|---|---|---|", flush=True)
        for clients in given.clients:
            compare(given, contenders, clip, clients)


if __name__ == "__main__":
    main()
