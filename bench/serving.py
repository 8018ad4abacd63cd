"""Compares a clipkeep server with the usual Python one over HTTP: JPEG in, answer out, ViT-B/32 with made-up weights, the same
threads and clients, runs that take turns.

    python3 bench/serving.py PHOTOS --clients 1 64

PHOTOS is a directory of JPEG files. Installs the other server from PyPI into target/bench-http-venv the first time. Prints
medians over the rounds, and ours over theirs.
"""

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
import venv
from pathlib import Path
from statistics import median

PACKAGES = ["torch", "torchvision", "transformers", "litserve", "pillow"]
LABELS = ",".join(f"label {number}" for number in range(10))


def environment():
    directory = Path("target/bench-http-venv")
    python = directory / "bin" / "python"
    if not python.exists():
        venv.create(directory, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return str(python)


class Server:
    """A server of its own process group, stopped at the end."""

    def __init__(self, name, command, url, ready):
        self.name, self.url = name, url
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        for _ in range(600):
            try:
                urllib.request.urlopen(ready)
                return
            except OSError:
                time.sleep(0.2)
        raise SystemExit(f"{name} did not get ready")

    def signal(self, which):
        os.killpg(self.process.pid, which)


def measure(binary, server, photos, clients, seconds):
    command = [binary, "bench", "http", server.url, "--json", "--images", photos]
    command += ["--clients", str(clients), "--seconds", str(seconds)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="theirs (default: %(default)s)")
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    given = parser.parse_args()
    python = environment()
    with tempfile.TemporaryDirectory() as folder:
        threads = str(given.threads)
        ours = [given.clipkeep, "serve", "--backbone", "random:vit-b-32", "--data-dir", folder]
        ours += ["--listen", "127.0.0.1:18081", "--threads", threads]
        theirs = [python, str(Path(__file__).parent / "litserve_clip.py"), "--port", "18082"]
        theirs += ["--dtype", given.dtype, "--threads", threads]
        query = urllib.request.quote(LABELS)
        ours_url = f"http://127.0.0.1:18081/v1/models/default/classify?labels={query}"
        servers = [
            Server("clipkeep", ours, ours_url, "http://127.0.0.1:18081/readyz"),
            Server("litserve", theirs, "http://127.0.0.1:18082/predict", "http://127.0.0.1:18082/health"),
        ]
        try:
            print("| clients | server | images a second | p50 ms | p99 ms |\n|---|---|---|---|---|")
            for clients in given.clients:
                compare(given, servers, clients)
        finally:
            for server in servers:
                server.signal(signal.SIGCONT)
                server.signal(signal.SIGKILL)


def compare(given, servers, clients):
    found = {server.name: [] for server in servers}
    for _ in range(given.rounds):
        for server in servers:
            # The other one must not take a core meanwhile, not even by waiting busily.
            for other in servers:
                other.signal(signal.SIGCONT if other is server else signal.SIGSTOP)
            found[server.name].append(measure(given.clipkeep, server, given.photos, clients, given.seconds))
    of = {}
    for name, runs in found.items():
        rate = median(run["images_per_second"] for run in runs)
        p50, p99 = (median(run["milliseconds"][at] for run in runs) for at in ["p50", "p99"])
        of[name] = (rate, p50)
        print(f"| {clients} | {name} | {rate:.1f} | {p50:.1f} | {p99:.1f} |")
    (rate, p50), (other_rate, other_p50) = of["clipkeep"], of["litserve"]
    print(f"| {clients} | ours / theirs | {rate / other_rate:.2f} | {p50 / other_p50:.2f} | |", flush=True)


if __name__ == "__main__":
    main()
