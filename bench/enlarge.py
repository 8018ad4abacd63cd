"""Copies of photographs at another size, as cameras save them, for scripts that send photographs as they are.

    python3 bench/enlarge.py PHOTOS LARGE --size 4000 3000
    python3 bench/serving.py LARGE --dtype bf16

PHOTOS is a directory of JPEG files, LARGE one that is made. Needs Pillow: from PyPI into target/bench-http-venv, unless this Python
has it.
"""

import argparse
from pathlib import Path

import environment
import programs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("large", type=Path)
    parser.add_argument("--size", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), default=[4000, 3000], help="(default: %(default)s)")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG files (default: %(default)s)")
    given = parser.parse_args()
    environment.enter(*environment.SERVING, needed=["pillow"])

    from PIL import Image

    given.large.mkdir(parents=True)
    for photograph in programs.photographs(given.photos):
        enlarged = Image.open(photograph).convert("RGB").resize(given.size, Image.Resampling.BICUBIC)
        enlarged.save(given.large / f"{photograph.stem}.jpg", quality=given.quality)


if __name__ == "__main__":
    main()
