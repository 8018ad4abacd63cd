"""What rounding does to the answers of the embedded backbone, which is trained: cosines and zero-shot classes in each dtype, against
those in f32 on the same machine, by a server of each.

    python3 bench/rounding.py PICTURES.zip PHOTOS

PICTURES.zip holds a folder for each class, whose name is its label; PHOTOS is a directory of photographs. Prints the smallest cosines
of their embeddings, for how many pictures the likeliest class is the same, and how far it was before the second one in f32, in points
of probability: of the pictures whose class changed at most, and of all of them in the median. Needs Python 3.11 and no package.
"""

import argparse
import base64
import json
import sys
import tempfile
import urllib.parse
import zipfile
from operator import mul
from pathlib import Path
from statistics import median

import programs

DTYPES = ["bf16", "int16", "int8"]


class Answers:
    """Those of a server with one dtype."""

    def __init__(self, given, dtype, pictures, labels, photographs):
        options = ["--device", given.device, "--dtype", dtype]
        with tempfile.TemporaryDirectory() as data, programs.Clipkeep(given.clipkeep, "embedded", data, *options) as server:
            most = server.call("GET", "/info")["limits"]["images"]
            model = server.create("labels").removeprefix(server.url)
            query = urllib.parse.urlencode({"top_k": 2, "labels": ",".join(labels)})
            of = lambda path, files, field: [item for some in in_json(files, most) for item in server.call("POST", path, some)[field]]
            embedded = lambda files: [item["values"] for item in of("/v1/embed", files, "embeddings")]
            classes = [item["classes"] for item in of(f"{model}?{query}", pictures, "predictions")]
            self.pictures, self.photographs = embedded(pictures), embedded(photographs)
        self.labels = [first["label"] for first, _ in classes]
        self.margins = [100 * (first["probability"] - second["probability"]) for first, second in classes]


def in_json(files, most):
    """Bodies with at most so many images each."""
    for first in range(0, len(files), most):
        images = [{"data": base64.b64encode(file).decode()} for file in files[first : first + most]]
        yield json.dumps({"images": images}).encode()


def read(archive):
    """Its pictures, and the labels of their folders."""
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if not name.endswith("/")]
        pictures, labels = [opened.read(name) for name in names], sorted({name.split("/")[0] for name in names})
    if any("," in label for label in labels):
        sys.exit("labels are sent with commas between them, and one of these has its own")
    return pictures, labels


def least_cosine(some, others):
    """Of rows of unit length."""
    return min(sum(map(mul, *rows)) for rows in zip(some, others))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--dtypes", nargs="+", choices=["auto", *DTYPES], default=DTYPES)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (default: %(default)s); f32 is always on the CPU")
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    given = parser.parse_args()
    pictures, labels = read(given.pictures)
    photographs = [file.read_bytes() for file in programs.photographs(given.photos)]
    of = lambda dtype, **options: Answers(argparse.Namespace(**{**vars(given), **options}), dtype, pictures, labels, photographs)
    exact = of("f32", device="cpu")
    head = ["dtype", "cosine, pictures", "cosine, photographs", "same class", "margin where it changed", "margin of all"]
    print(f"{len(pictures)} pictures of {len(labels)} classes, {len(photographs)} photographs\n")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    for dtype in given.dtypes:
        found = of(dtype)
        cosines = [least_cosine(*rows) for rows in [(exact.pictures, found.pictures), (exact.photographs, found.photographs)]]
        changed = [margin for margin, *names in zip(exact.margins, exact.labels, found.labels) if names[0] != names[1]]
        line = [f"{cosine:.6f}" for cosine in cosines] + [str(len(pictures) - len(changed))]
        line += [f"{margin:.2f}" for margin in [max(changed, default=0), median(exact.margins)]]
        print(f"| {dtype} | " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    main()
