"""Prints what jobs cost in time, memory and storage, as MEASUREMENTS.md has it. Needs Python 3.11 on Linux and no package.

    python3 bench/jobs.py

For each strategy it starts a server of its own, on SQLite and a made-up CLIP: ViT-B/32's feature width (512) and towers of
one narrow layer, so that what is measured is not the encoding. It teaches 900 classes with four pictures each, then 100
classes with four, then 10 with a thousand, and prints the last two: seconds of the fit and of the whole job by the job's own
report, resident memory before the job and its peak during it, and bytes stored.
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
import zlib
from array import array
from datetime import datetime
from pathlib import Path

import environment

HERE = Path(__file__).parent
TOKENIZER = HERE.parent / "assets" / "mini-clip" / "tokenizer.json"
STRATEGIES = ["linear", "ensemble", "ridge", "gda"]
TASKS = [("old", 900, 4), ("many classes", 100, 4), ("many examples", 10, 1000)]
DIM, WIDTH, IMAGE, PATCH, VOCABULARY, CONTEXT = 512, 64, 32, 16, 2048, 32


# --- a made-up CLIP ---------------------------------------------------------------------------------------------------


def shapes():
    """The tensors of a checkpoint in Hugging Face's layout, with their shapes."""
    tokens = (IMAGE // PATCH) ** 2 + 1
    yield "logit_scale", []
    yield "vision_model.embeddings.class_embedding", [WIDTH]
    yield "vision_model.embeddings.patch_embedding.weight", [WIDTH, 3, PATCH, PATCH]
    yield "vision_model.embeddings.position_embedding.weight", [tokens, WIDTH]
    yield "text_model.embeddings.token_embedding.weight", [VOCABULARY, WIDTH]
    yield "text_model.embeddings.position_embedding.weight", [CONTEXT, WIDTH]
    for norm in ["vision_model.pre_layrnorm", "vision_model.post_layernorm", "text_model.final_layer_norm"]:
        yield f"{norm}.weight", [WIDTH]
        yield f"{norm}.bias", [WIDTH]
    for tower in ["vision_model", "text_model"]:
        layer = f"{tower}.encoder.layers.0"
        for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"]:
            yield f"{layer}.{name}.weight", [WIDTH, WIDTH]
            yield f"{layer}.{name}.bias", [WIDTH]
        for name, shape in [("mlp.fc1", [2 * WIDTH, WIDTH]), ("mlp.fc2", [WIDTH, 2 * WIDTH])]:
            yield f"{layer}.{name}.weight", shape
            yield f"{layer}.{name}.bias", shape[:1]
        for name in ["layer_norm1", "layer_norm2"]:
            yield f"{layer}.{name}.weight", [WIDTH]
            yield f"{layer}.{name}.bias", [WIDTH]
    yield "visual_projection.weight", [DIM, WIDTH]
    yield "text_projection.weight", [DIM, WIDTH]


def make_backbone(directory):
    directory.mkdir()
    noise = random.Random(1)
    header, body = {}, bytearray()
    for name, shape in shapes():
        size = 1
        for edge in shape:
            size *= edge
        values = [4.6] if name == "logit_scale" else [noise.gauss(0, 0.2) for _ in range(size)]
        start = len(body)
        body += array("f", values).tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(body)]}
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    tower = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "eos_token_id": VOCABULARY - 1}
    config = {
        "model_type": "clip",
        "projection_dim": DIM,
        "vision_config": {**tower, "image_size": IMAGE, "patch_size": PATCH},
        "text_config": {**tower, **text},
    }
    (directory / "config.json").write_text(json.dumps(config))
    size = {"size": {"shortest_edge": IMAGE}, "crop_size": {"height": IMAGE, "width": IMAGE}}
    (directory / "preprocessor_config.json").write_text(json.dumps(size))
    shutil.copy(TOKENIZER, directory / "tokenizer.json")


# --- pictures ---------------------------------------------------------------------------------------------------------


def picture(noise):
    """A PNG of coloured noise: four by four patches of eight pixels."""
    colours = [bytes(noise.randrange(256) for _ in range(3)) for _ in range(16)]
    lines = [b"\0" + b"".join(colours[y // 8 * 4 + x // 8] for x in range(IMAGE)) for y in range(IMAGE)]
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", IMAGE, IMAGE, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"".join(lines), 1)) + chunk(b"IEND", b"")


def archive(task, classes, examples):
    """A zip with train/ and test/ folders: so many examples a class to learn from, and two held out."""
    noise = random.Random(f"{task}")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for label in range(classes):
            for part, count in [("train", examples), ("test", 2)]:
                for number in range(count):
                    out.writestr(f"{part}/{task} {label}/{number}.png", picture(noise))
    return file.getvalue()


# --- the server -------------------------------------------------------------------------------------------------------


class Server:
    def __init__(self, binary, backbone, data, *options):
        self.address = f"127.0.0.1:{environment.free_port()}"
        self.data = data
        command = [binary, "serve", "--backbone", backbone, "--data-dir", data, "--listen", self.address, "--fit-threads", "2", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            if self.process.poll() is not None:
                sys.exit(f"the server ended with {self.process.returncode}")
            try:
                self.call("GET", "/readyz")
                return
            except OSError:
                time.sleep(0.1)
        self.stop()
        sys.exit("the server did not get ready")

    def call(self, method, path, body=None, kind="application/json"):
        request = urllib.request.Request(f"http://{self.address}{path}", body, {"content-type": kind}, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read() or b"null") if "json" in answer.headers["content-type"] else None

    def learn(self, model, task, file):
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

    def memory(self, of):
        """Resident memory in MiB: now (VmRSS) or its peak (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split(f"{of}:")[1].split()[0]) // 1024

    def forget_peak(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def stored(self, version):
        """Bytes of a version's snapshot, and of the statistics it added."""
        with sqlite3.connect(f"file:{self.data}/clipkeep.db?mode=ro", uri=True) as database:
            query = "select length(snapshot), length(statistics) from version where number = ?"
            return database.execute(query, [version]).fetchone()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    parser.add_argument("strategies", nargs="*", default=STRATEGIES, help="what to measure (default: %(default)s)")
    given = parser.parse_args()
    archives = [(task, f"{classes} × {examples:,}", archive(task, classes, examples)) for task, classes, examples in TASKS]
    print("| strategy | classes × examples | fit | whole job | memory | snapshot | statistics added |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        make_backbone(Path(folder) / "backbone")
        for strategy in given.strategies:
            data = f"{folder}/{strategy}"
            os.mkdir(data)
            server = Server(given.clipkeep, f"{folder}/backbone", data)
            try:
                measure(server, strategy, archives)
            finally:
                server.stop()


def measure(server, strategy, archives):
    model = {"name": strategy, "config": {"strategy": strategy}}
    server.call("POST", "/v1/models", json.dumps(model).encode())
    for task, shape, file in archives:
        before = server.memory("VmRSS")
        server.forget_peak()
        job = server.learn(strategy, task, file)
        if task == "old":
            continue
        moment = lambda field: datetime.fromisoformat(job[field].replace("Z", "+00:00"))
        whole = (moment("updated_at") - moment("created_at")).total_seconds()
        snapshot, statistics = server.stored(job["version"])
        print(
            f"| `{strategy}` | {shape} | {job['report']['seconds']['fit']:.2f} s | {whole:.2f} s "
            f"| {before} → {server.memory('VmHWM')} MiB | {snapshot / 1e6:.1f} MB | {statistics / 1e6:.1f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
