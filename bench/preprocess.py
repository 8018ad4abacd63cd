"""Compares decoding and preprocessing of photographs with Pillow and torchvision: CLIP's transform, one thread, runs that take
turns. Ours ends with the bytes that its towers take; theirs is measured as far as those, and as far as normalised pixels, which
their towers take; and as far as bytes where Pillow is told (by `draft`, which nobody's transform does) to decode large JPEGs smaller, as ours
does. Says whether the bytes of that are ours.

    python3 bench/preprocess.py PHOTO.jpg …

Without a photograph it makes two JPEG files of 4000×3000 and 500×375 pixels out of noise that looks like one. Installs the
others from PyPI into target/bench-http-venv the first time. Prints milliseconds, medians over the rounds.
"""

import argparse
import hashlib
import io
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import environment
import programs
from turns import by_turns


def made_up(folder):
    """Photographs, as far as a decoder can tell: smooth shapes with grain, saved as cameras do."""
    import numpy
    from PIL import Image

    noise = numpy.random.default_rng(0)
    for width, height in [(4000, 3000), (500, 375)]:
        coarse = Image.fromarray(noise.integers(0, 256, (height // 50, width // 50, 3), dtype=numpy.uint8))
        smooth = numpy.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=numpy.int16)
        grain = noise.normal(0, 6, smooth.shape).astype(numpy.int16)
        file = Path(folder) / f"{width}x{height}.jpg"
        Image.fromarray((smooth + grain).clip(0, 255).astype(numpy.uint8)).save(file, quality=90)
        yield str(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    given = parser.parse_args()
    environment.enter(*environment.SERVING)

    import torch
    from PIL import Image
    from torchvision.transforms import v2

    from clip_transform import clip_transform, cropped

    torch.set_num_threads(1)

    def theirs(transform):
        times = []
        while len(times) < 5 or sum(times) < 1:
            before = time.perf_counter()
            transform()
            times.append(time.perf_counter() - before)
        return {"ms": 1e3 * median(times)}

    def whole(data):
        return Image.open(io.BytesIO(data)).convert("RGB")

    def of_a_draft(data):
        """Cropped as `transformers` does, where torchvision is half a pixel to the right of it: where the margins are not equal."""
        image = Image.open(io.BytesIO(data))
        image.draft(None, [2 * 224 * side // min(image.size) for side in image.size])
        image = resized(image.convert("RGB"))
        left, top = ((side - 224) // 2 for side in image.size)
        return v2.functional.pil_to_tensor(image.crop((left, top, left + 224, top + 224))).numpy().tobytes()

    resized = v2.Resize(224, interpolation=v2.InterpolationMode.BICUBIC)
    to_bytes, normalised = cropped(), clip_transform()
    digests = {}

    def ours(file):
        [found] = programs.bench(given.clipkeep, "preprocess", "--backbone", "random:vit-b-32", file)
        digests[file] = found["digest"]
        return {"ms": found["milliseconds"]}

    print(environment.versions(sys.executable, "pillow", "torchvision", "torch") + "\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        theirs_are = ["bytes", "normalised", "bytes of a draft"]
        columns = ["file", "clipkeep ms", *(f"{name} ms" for name in theirs_are), *(f"{name} / ours" for name in theirs_are), "bytes of a draft are ours"]
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for file in given.photos or made_up(folder):
            data = Path(file).read_bytes()
            measures = {
                "ours": lambda: ours(file),
                "bytes": lambda: theirs(lambda: to_bytes(whole(data))),
                "normalised": lambda: theirs(lambda: normalised(whole(data))),
                "draft": lambda: theirs(lambda: of_a_draft(data)),
            }
            mine, *others = (of["ms"] for of in by_turns(given.rounds, measures).values())
            times, ratios = [f"{ms:.2f}" for ms in [mine, *others]], [f"{ms / mine:.2f}" for ms in others]
            equal = "yes" if digests[file] == f"sha256:{hashlib.sha256(of_a_draft(data)).hexdigest()}" else "no"
            print(f"| {Path(file).name} | {' | '.join([*times, *ratios, equal])} |", flush=True)


if __name__ == "__main__":
    main()
