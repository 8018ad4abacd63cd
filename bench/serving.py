"""Compares a clipkeep server with the usual Python ones over HTTP: a JPEG in, answer out, the same ViT-B/32 with made-up weights, the
same threads and clients, runs that take turns.

    python3 bench/serving.py PHOTOS --clients 1 64

PHOTOS is a directory of JPEG files. clipkeep and LitServe take a form and answer with probabilities, infinity takes JSON and
answers with an embedding. Installs the others from PyPI into target/ the first time. Prints medians over the rounds, and ours
over the best of the others.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from statistics import median

import environment

HERE = Path(__file__).parent
LABELS = ",".join(f"label {number}" for number in range(10))
ENVELOPE = json.dumps({"model": "clip", "modality": "image", "input": ["data:image/jpeg;base64,{}"]})


class Server:
    """A server of its own process group, stopped at the end. `body` is how `clipkeep bench http` sends it an image."""

    def __init__(self, name, command, url, ready, body, threads):
        self.name, self.url, self.body = name, url, body
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        environ = {**os.environ, "OMP_NUM_THREADS": threads}
        self.process = subprocess.Popen(command, **quiet, env=environ, start_new_session=True)
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit(f"{name} ended with {self.process.returncode}")
            try:
                urllib.request.urlopen(ready)
                return
            except OSError:
                time.sleep(0.2)
        self.stop()
        raise SystemExit(f"{name} did not get ready")

    def signal(self, which):
        os.killpg(self.process.pid, which)

    def stop(self):
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)


def measure(binary, server, photos, clients, seconds):
    command = [binary, "bench", "http", server.url, "--json", "--images", photos]
    command += ["--clients", str(clients), "--seconds", str(seconds), *server.body]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(output.splitlines()[-1])
    if found["failures"]:
        raise SystemExit(f"{server.name} failed: {found['failures']}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="of all (default: %(default)s)")
    parser.add_argument("--ours", choices=["auto", "f32", "bf16", "int16", "int8"], help="clipkeep's dtype, if another")
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    given = parser.parse_args()
    python = environment.python_with(*environment.SERVING)
    infinity = environment.python_with(*environment.INFINITY).parent / "infinity_emb"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        threads, clip = str(given.threads), f"{folder}/clip"
        subprocess.run([python, HERE / "make_clip.py", clip], check=True, stdout=subprocess.DEVNULL)
        ports = [environment.free_port() for _ in range(3)]
        # No image comes twice, so that a cache would only cost.
        ours = [given.clipkeep, "serve", "--backbone", clip, "--data-dir", folder, "--feature-cache-mib", "0"]
        ours += ["--listen", f"127.0.0.1:{ports[0]}", "--threads", threads, "--dtype", given.ours or given.dtype]
        litserve = [python, HERE / "litserve_clip.py", clip, "--port", str(ports[1]), "--dtype", given.dtype, "--threads", threads]
        dtype = {"f32": "float32", "bf16": "bfloat16"}[given.dtype]
        infinity = [infinity, "v2", "--model-id", clip, "--served-model-name", "clip", "--host", "127.0.0.1", "--port", str(ports[2])]
        infinity += ["--engine", "torch", "--device", "cpu", "--dtype", dtype, "--no-bettertransformer"]
        query = urllib.parse.quote(LABELS)
        at = [f"http://127.0.0.1:{port}" for port in ports]
        form, json_body = ["--form", "image"], ["--envelope", ENVELOPE]
        servers = []
        for server in [
            ("clipkeep", ours, f"{at[0]}/v1/models/default/classify?labels={query}", f"{at[0]}/readyz", form),
            ("litserve", litserve, f"{at[1]}/predict", f"{at[1]}/health", form),
            ("infinity", infinity, f"{at[2]}/embeddings", f"{at[2]}/health", json_body),
        ]:
            servers.append(Server(*server, threads))
            stack.callback(servers[-1].stop)
        print("| clients | server | images a second | p50 ms | p99 ms |\n|---|---|---|---|---|")
        for clients in given.clients:
            compare(given, servers, clients)


def compare(given, servers, clients):
    found = {server.name: [] for server in servers}
    for _ in range(given.rounds):
        for server in servers:
            # The others must not take a core meanwhile, not even by waiting busily.
            for other in servers:
                other.signal(signal.SIGCONT if other is server else signal.SIGSTOP)
            found[server.name].append(measure(given.clipkeep, server, given.photos, clients, given.seconds))
    of = {}
    for name, runs in found.items():
        rate = median(run["images_per_second"] for run in runs)
        p50, p99 = (median(run["milliseconds"][at] for run in runs) for at in ["p50", "p99"])
        of[name] = (rate, p50)
        print(f"| {clients} | {name} | {rate:.1f} | {p50:.1f} | {p99:.1f} |")
    rate, p50 = of.pop("clipkeep")
    best_rate = max(other_rate for other_rate, _ in of.values())
    best_p50 = min(other_p50 for _, other_p50 in of.values())
    print(f"| {clients} | ours / best of theirs | {rate / best_rate:.2f} | {p50 / best_p50:.2f} | |", flush=True)


if __name__ == "__main__":
    main()
