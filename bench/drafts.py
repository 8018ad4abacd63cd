"""What decoding at a part of the size does to features: those of JPEG files of 500×375 pixels against those of the same pixels as
PNG, which is decoded in whole, for the embedded backbone, which looks at 32×32.

    python3 bench/drafts.py PHOTOS

PHOTOS is a directory of JPEG files, which are resized to that. Prints cosines, and for how many the likeliest of ten labels is the same.
"""

import argparse
import io
import tempfile
from pathlib import Path
from statistics import median

import environment
import programs

LABELS = ["animal", "bird", "fish", "insect", "flower", "tree", "building", "vehicle", "food", "tool"]


def files(photograph):
    """A JPEG, and a PNG of what it holds."""
    from PIL import Image

    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.open(photograph).convert("RGB").resize((500, 375)).save(jpeg, "JPEG", quality=90)
    Image.open(jpeg).save(png, "PNG")
    return {"image/jpeg": jpeg.getvalue(), "image/png": png.getvalue()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    given = parser.parse_args()
    environment.enter(*environment.SERVING)
    cosines, same = [], 0
    with tempfile.TemporaryDirectory() as data, programs.Clipkeep(given.clipkeep, "embedded", data) as server:
        model = server.create("labels").removeprefix(server.url)
        for photograph in programs.photographs(given.photos):
            rows, likeliest = [], set()
            for kind, image in files(photograph).items():
                embedded = server.call("POST", "/v1/embed", image, kind)
                rows.append(embedded["embeddings"][0]["values"])
                answer = server.call("POST", f"{model}?top_k=1&labels={','.join(LABELS)}", image, kind)
                likeliest.add(answer["predictions"][0]["classes"][0]["label"])
            cosines.append(sum(a * b for a, b in zip(*rows)))
            same += len(likeliest) == 1
    print(f"cosine {median(cosines):.4f} in the median, {min(cosines):.4f} at worst; likeliest label the same for {same} of {len(cosines)}")


if __name__ == "__main__":
    main()
