"""Prints what jobs cost in time, memory and storage, as MEASUREMENTS.md has it. Needs Python 3.11 on Linux and no package.

    python3 bench/jobs.py
    python3 bench/jobs.py linear --rounds 1

For each strategy, by turns, it starts a server of its own, on SQLite and a made-up CLIP: ViT-B/32's feature width (512) and towers
of one narrow layer, so that what is measured is not the encoding. It teaches 900 classes with four pictures each, then 100
classes with four, then 10 with a thousand, and prints the last two: seconds of the fit and of the whole job by the job's own
report, resident memory before the job and its peak during it, and bytes stored. Medians over the rounds.
"""

import argparse
import io
import json
import random
import shutil
import struct
import tempfile
import zipfile
import zlib
from array import array
from pathlib import Path

import programs
from turns import by_turns

TOKENIZER = programs.HERE.parent / "assets" / "mini-clip" / "tokenizer.json"
STRATEGIES = ["linear", "ensemble", "ridge", "gda"]
OLD = "old"
TASKS = [(OLD, 900, 4), ("many classes", 100, 4), ("many examples", 10, 1000)]
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


# --- what is measured -------------------------------------------------------------------------------------------------


def measure(given, backbone, strategy, archives):
    """What each task after the first took and left, on a server that has learned nothing: numbers by task and what they are of."""
    found = {}
    with tempfile.TemporaryDirectory() as data, programs.Clipkeep(given.clipkeep, backbone, data, "--fit-threads", 2) as server:
        server.create(strategy, config={"strategy": strategy})
        for task, file in archives.items():
            before = server.memory("VmRSS")
            server.forget_peak()
            job = server.learn(strategy, task, file)
            if task == OLD:
                continue
            found[task, "fit"] = job["report"]["seconds"]["fit"]
            found[task, "whole"] = programs.job_seconds(job)
            found[task, "before"], found[task, "peak"] = before / 2**20, server.memory("VmHWM") / 2**20
            found[task, "snapshot"], found[task, "statistics"] = server.stored(job["version"])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("strategies", nargs="*", default=STRATEGIES, help="what to measure (default: %(default)s)")
    given = parser.parse_args()
    archives = {task: archive(task, classes, examples) for task, classes, examples in TASKS}
    with tempfile.TemporaryDirectory() as folder:
        backbone = Path(folder) / "backbone"
        make_backbone(backbone)
        measures = {of: lambda of=of: measure(given, backbone, of, archives) for of in given.strategies}
        found = by_turns(given.rounds, measures)
    print("| strategy | classes × examples | fit | whole job | memory | snapshot | statistics added |")
    print("|---|---|---|---|---|---|---|")
    for strategy, of in found.items():
        for task, classes, examples in TASKS:
            if task != OLD:
                print(f"| `{strategy}` | {classes} × {examples:,} | {line(task, of)} |")


def line(task, of):
    return (
        f"{of[task, 'fit']:.2f} s | {of[task, 'whole']:.2f} s | {of[task, 'before']:.0f} → {of[task, 'peak']:.0f} MiB "
        f"| {of[task, 'snapshot'] / 1e6:.1f} MB | {of[task, 'statistics'] / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
