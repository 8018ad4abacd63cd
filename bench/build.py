"""How long builds take: with nothing built before, and after a change of one file of src/adapter. Needs Python 3.11, git and cargo.

    python3 bench/build.py
    python3 bench/build.py --release

Builds a copy of the working tree, without what git ignores, into a target directory of its own; both are in the folder for temporary
files (TMPDIR), which needs room for some GB. Crates are fetched before that. A change is a comment at the head of the file, written
when it is needed: all that follows stands on another line then, so that an incremental build has work to do, as after a change in
earnest. Whether builds are incremental is left as it is (CARGO_INCREMENTAL). Prints seconds; after a change, medians over the rounds.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from turns import by_turns

BUILD, TEST = ["build"], ["test", "--no-run"]


def copy_tree(to):
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], check=True, stdout=subprocess.PIPE, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        # What was removed and not committed is listed still.
        if Path(name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, to / name)


class Tree:
    """A copy of the sources, with a target directory of its own."""

    def __init__(self, folder, file):
        self.sources, self.changes = folder / "sources", 0
        self.environ = {**os.environ, "CARGO_TARGET_DIR": str(folder / "target")}
        copy_tree(self.sources)
        self.file = self.sources / file
        self.text = self.file.read_text()

    def cargo(self, *arguments):
        """Seconds that it takes."""
        started = time.perf_counter()
        subprocess.run(["cargo", *arguments, "--locked", "--quiet"], check=True, cwd=self.sources, env=self.environ)
        return time.perf_counter() - started

    def after_a_change(self, *arguments):
        self.changes += 1
        self.file.write_text(f"// Change {self.changes}.\n{self.text}")
        return {"seconds": self.cargo(*arguments)}


def compare(given, tree, profile):
    build, test = [*BUILD, *profile], [*TEST, *profile]
    show = lambda command, when, seconds: print(f"| `cargo {' '.join(command)}` | {when} | {seconds:.1f} s |", flush=True)
    show(build, "with nothing built before", tree.cargo(*build))
    show(test, "after that", tree.cargo(*test))
    measures = {"build": lambda: tree.after_a_change(*build), "test": lambda: tree.after_a_change(*test)}
    found = by_turns(given.rounds, measures)
    for name, command in [("build", build), ("test", test)]:
        show(command, f"after a change in {given.file}", found[name]["seconds"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", action="store_true", help="the same with --release, after that")
    parser.add_argument("--file", default="src/adapter/ridge.rs", help="what is changed (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clipkeep-build-") as folder:
        tree = Tree(Path(folder), given.file)
        tree.cargo("fetch")
        print("| command | when | took |\n|---|---|---|", flush=True)
        for profile in [[], ["--release"]] if given.release else [[]]:
            compare(given, tree, profile)


if __name__ == "__main__":
    main()
