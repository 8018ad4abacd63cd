"""What a job costs those who classify meanwhile, and what they cost it, at half of the load that a server can bear.

    python3 bench/learning.py PHOTOS
    python3 bench/learning.py PHOTOS --strategy prompt --pictures 60 --seconds 20

PHOTOS is a directory of JPEG files. Starts a clipkeep server with a ViT-B/32 of made-up weights, measures what 64 clients get of
it, and takes half of that as the rate of all windows. In every round three things take turns: a task of 1,000 pictures in ten
classes is learned alone; a window passes without a job; and another one, as long, with such a task posted as it begins. Each task
is the first one of its model, and no picture comes twice, be it in a task, in another one or in a request: so every job does the same
work, and no cache helps.

A window is 1.5 times as long as the first job alone. One that a job did not outlast would measure less than it says, so that ends
the script: give a shorter one by --seconds. As a job goes on alone after its window, its slowdown is told twice: of all of it, and
in the window, where the pace after it is taken for the pace alone. Prints medians over the rounds. Needs Python 3.11 on Linux and
no package.
"""

import argparse
import itertools
import math
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import programs
from turns import by_turns

CLASSES, HELD_OUT = 10, 2
CLIENTS, CAPACITY_SECONDS = 64, 8
WINDOWS_PER_JOB = 1.5
# A job is accepted a moment before its window begins.
MOMENT = 1.0
LATENCIES = ["p50", "p99", "max"]


class Tasks:
    """Tasks of one size, of photographs. None is like another to a cache: behind its end a JPEG may carry anything."""

    def __init__(self, photos, size, file):
        self.photos = [photo.read_bytes() for photo in programs.photographs(photos)]
        self.size, self.file, self.numbers = size, Path(file), itertools.count()

    def write(self):
        """The next one, as a zip with train/ and test/ folders; gives its path."""
        parts = [("train", self.size // CLASSES), ("test", HELD_OUT)]
        with zipfile.ZipFile(self.file, "w") as out:
            for label, (part, count) in itertools.product(range(CLASSES), parts):
                for number in range(count):
                    out.writestr(f"{part}/class {label}/{number}.jpg", self.picture(label))
        return self.file

    def picture(self, label):
        of_label = self.photos[label::CLASSES] or self.photos
        number = next(self.numbers)
        return of_label[number % len(of_label)] + b"learning" + number.to_bytes(8)


class Rounds:
    """What is measured by turns. `window` is its length in seconds, or None until the first job has told it."""

    def __init__(self, given, server, tasks):
        self.given, self.server, self.tasks = given, server, tasks
        self.window, self.models = given.seconds, itertools.count()
        capacity = self.ask("default", "--clients", CLIENTS, "--seconds", CAPACITY_SECONDS)["images_per_second"]
        self.rate = capacity / 2
        print(f"{CLIENTS} clients get {capacity:.1f} images a second; half of that is {self.rate:.1f}.", flush=True)

    def new_model(self):
        model = f"model-{next(self.models)}"
        self.server.create(model, config={"strategy": self.given.strategy})
        return model

    def ask(self, model, *options):
        url = f"{self.server.url}/v1/models/{model}/classify?labels=cat,dog,tree"
        return programs.bench_http(self.given.clipkeep, [url], self.given.photos, *options)

    def alone(self):
        job = self.server.learn(self.new_model(), "alone", self.tasks.write().read_bytes())
        self.alone_seconds = programs.job_seconds(job)
        if self.window is None:
            self.window = WINDOWS_PER_JOB * self.alone_seconds
            print(f"A job alone took {self.alone_seconds:.1f} s; windows are of {self.window:.1f} s.", flush=True)
        return {"seconds": self.alone_seconds}

    def without_a_job(self):
        return self.ask_for_a_window()["milliseconds"]

    def with_a_job(self):
        found = self.ask_for_a_window("--teach", self.tasks.write())
        state, seconds = found["job"]
        if state != "succeeded":
            sys.exit(f"the job {state}")
        if seconds < self.window + MOMENT:
            sys.exit(f"the job took {seconds:.1f} s, which is too short for a window of {self.window:.1f} s: give less by --seconds")
        done_in_window = self.alone_seconds - (seconds - self.window)
        in_window = self.window / done_in_window if done_in_window > 0 else math.inf
        slowdowns = {"whole": seconds / self.alone_seconds, "in the window": in_window}
        return {**found["milliseconds"], **slowdowns, "seconds": seconds}

    def ask_for_a_window(self, *options):
        return self.ask(self.new_model(), "--rate", self.rate, "--seconds", self.window, *options)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", choices=["auto", "f32", "bf16", "int16", "int8"], default="auto", help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--backbone", default="random:vit-b-32", help="(default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=1_000, help="of a task (default: %(default)s)")
    parser.add_argument("--strategy", default="ensemble", help="of the models; prompt fits for longest (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="of a window (default: 1.5 times a job's)")
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    given = parser.parse_args()
    options = ["--threads", given.threads, "--dtype", given.dtype, "--device", given.device]
    with (
        tempfile.TemporaryDirectory() as folder,
        programs.Clipkeep(given.clipkeep, given.backbone, folder, *options) as server,
    ):
        rounds = Rounds(given, server, Tasks(given.photos, given.pictures, Path(folder) / "task.zip"))
        measures = {"alone": rounds.alone, "without": rounds.without_a_job, "with": rounds.with_a_job}
        found = by_turns(given.rounds, measures)
    without, beside = found["without"], found["with"]
    print("\n| | p50 | p99 | slowest |\n|---|---|---|---|")
    for name, of in [("without a job", without), ("while it learns", beside)]:
        print(f"| {name} | " + " | ".join(f"{of[at]:.1f} ms" for at in LATENCIES) + " |")
    print("| with / without | " + " | ".join(f"{beside[at] / without[at]:.2f}" for at in LATENCIES) + " |")
    print("\n| job alone | under load | slowdown | slowdown in the window |\n|---|---|---|---|")
    slowdowns = f"{beside['whole']:.2f} | {beside['in the window']:.2f}"
    print(f"| {found['alone']['seconds']:.1f} s | {beside['seconds']:.1f} s | {slowdowns} |")


if __name__ == "__main__":
    main()
