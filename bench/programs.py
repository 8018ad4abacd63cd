"""Programs that are measured: started, waited for, asked, stopped; and what `clipkeep bench` prints."""

import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).parent
# Of a server, until it is ready; and between two looks whether it is.
PATIENCE, LOOK_EVERY = 600, 0.005


def environ(given=None):
    """That of this process, or another one, in which programs find the CUDA libraries that packages of PyPI bring: those of this
    Python, and those in target/. A program for GPUs does not start without, whatever it is to do; to others they are nothing."""
    given = os.environ if given is None else given
    packages = [*map(Path, sys.path), *sorted(Path("target").absolute().glob("*/lib/python3*/site-packages"))]
    # Those of CUDA 13 first: some of CUDA 12 have the same names.
    found = [package.glob(folder) for folder in ["nvidia/cu13/lib", "nvidia/*/lib"] for package in packages]
    folders = filter(None, [given.get("LD_LIBRARY_PATH"), *dict.fromkeys(str(folder) for of in found for folder in of)])
    return {**given, "LD_LIBRARY_PATH": os.pathsep.join(folders)}


def bench(binary, *arguments):
    """The objects that `clipkeep bench` prints."""
    command = [str(part) for part in [binary, "bench", *arguments]]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environ()).stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def bench_http(binary, urls, photos, *options):
    """What `clipkeep bench http` measured, if every answer was a good one."""
    [found] = bench(binary, "http", "--json", *urls, "--images", photos, *options)
    if found["failures"]:
        sys.exit(f"{urls[0]} failed: {found['failures']}")
    return found


def photographs(path):
    """The files that `clipkeep bench http` sends of a directory, in its order."""
    return sorted(file for file in Path(path).iterdir() if file.is_file())


def make_clip(python, directory):
    """A checkpoint of ViT-B/32's shape with made-up weights, by a Python that has transformers."""
    subprocess.run([python, HERE / "make_clip.py", directory], check=True, stdout=subprocess.DEVNULL)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A server in a process group of its own. Ready once it answers `ready`, a URL, with 200; stopped with its `with`."""

    def __init__(self, name, command, ready, **options):
        self.name = name
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = time.perf_counter()
        self.process = subprocess.Popen([str(part) for part in command], **quiet, start_new_session=True, **options)
        try:
            self.wait_for(ready)
        except BaseException:
            self.stop()
            raise
        self.seconds_to_ready = time.perf_counter() - started

    def wait_for(self, ready):
        url = urllib.parse.urlsplit(ready)
        until = time.perf_counter() + PATIENCE
        while time.perf_counter() < until:
            if self.process.poll() is not None:
                sys.exit(f"{self.name} ended with {self.process.returncode}")
            if answers_ok(url):
                return
            time.sleep(LOOK_EVERY)
        sys.exit(f"{self.name} did not get ready")

    def pause(self):
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self):
        os.killpg(self.process.pid, signal.SIGCONT)

    def memory(self, of):
        """Resident memory in bytes: now (VmRSS) or its peak (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.split(f"{of}:")[1].split()[0])

    def forget_peak(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def stop(self):
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def answers_ok(url):
    # Less work than urllib does: the server that starts meanwhile needs the cores.
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=10)
    try:
        connection.request("GET", url.path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Clipkeep(Server):
    """A clipkeep server on a port of its own."""

    def __init__(self, binary, backbone, data, *options, env=None, **more):
        self.url, self.data = f"http://127.0.0.1:{free_port()}", data
        command = [binary, "serve", "--backbone", backbone, "--data-dir", data, *options]
        command += ["--listen", self.url.removeprefix("http://")]
        super().__init__("clipkeep", command, f"{self.url}/readyz", env=environ(env), **more)

    def call(self, method, path, body=None, kind="application/json"):
        """The answer, as JSON where it is."""
        request = urllib.request.Request(f"{self.url}{path}", body, {"content-type": kind}, method=method)
        with urllib.request.urlopen(request) as answer:
            text = answer.read().decode()
            return json.loads(text) if "json" in answer.headers["content-type"] else text

    def create(self, model, **config):
        """Makes a model; gives the URL that classifies with it."""
        self.call("POST", "/v1/models", json.dumps({"name": model, **config}).encode())
        return f"{self.url}/v1/models/{model}/classify"

    def learn(self, model, task, file):
        """Teaches a task; gives its job, once it has succeeded."""
        path = f"/v1/models/{model}/tasks?name={task.replace(' ', '-')}"
        job = self.call("POST", path, file, "application/zip")["job"]
        while True:
            found = self.call("GET", f"/v1/jobs/{job}")
            if found["state"] not in ["queued", "running"]:
                break
            time.sleep(0.1)
        if found["state"] != "succeeded":
            sys.exit(f"{model} did not learn {task}: {found['error']}")
        return found

    def histogram(self, name):
        """The sum and the count of a metric, whatever its labels."""
        of = {"sum": 0.0, "count": 0.0}
        for line in self.call("GET", "/metrics").splitlines():
            series, _, value = line.rpartition(" ")
            kind = series.partition("{")[0].removeprefix(f"{name}_")
            if kind in of:
                of[kind] += float(value)
        return of["sum"], of["count"]

    def stored(self, version):
        """Bytes of a version's snapshot, and of the statistics it added."""
        with sqlite3.connect(f"file:{self.data}/clipkeep.db?mode=ro", uri=True) as database:
            query = "select length(snapshot), length(statistics) from version where number = ?"
            return database.execute(query, [version]).fetchone()


def job_seconds(job):
    """From its acceptance to its end."""
    moment = lambda field: datetime.fromisoformat(job[field].replace("Z", "+00:00"))
    return (moment("updated_at") - moment("created_at")).total_seconds()
