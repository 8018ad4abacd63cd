"""Prints the tables of accuracies of MEASUREMENTS.md and README.md, by `clipkeep evaluate`. Needs Python 3.11 and no package.

    python3 bench/accuracy.py FEATURES IMAGES

FEATURES holds a directory each for imagenet, caltech101, oxford_flowers, oxford_pets and stanford_cars, laid out as
`clipkeep evaluate --help` says. IMAGES holds novel-task1-train.zip, novel-task1-test.zip and so on to task 4. Every command
is printed before its table, and each order's figures after it. About a quarter of an hour on two cores.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

ABLATION = [
    ("`zero_shot`", "zero_shot"),
    ("`linear`, no rehearsal, no retention", "linear:rehearsal=none:retention=none"),
    ("`linear`, rehearsal, no retention", "linear:retention=none"),
    ("`linear`, no rehearsal, importance", "linear:rehearsal=none"),
    ("`linear`, rehearsal, random", "linear:retention=random"),
    ("`linear`, rehearsal, SVD", "linear:retention=svd"),
    ("`linear`, rehearsal, penalty (strength 100)", "linear:retention=penalty"),
    ("`linear`, 4 exemplars a class, importance", "linear:rehearsal=exemplars:per_class=4"),
    ("`linear` (rehearsal, importance)", "linear"),
    ("`linear`, joint", "linear:joint"),
    ("`ridge`", "ridge"),
    ("`gda`", "gda"),
    ("`default`", "default"),
    ("`default`, joint", "default:joint"),
]
MASKS = [
    ("importance, 0.4", "linear:retention=importance:ratio=0.4"),
    ("random, 0.4", "linear:retention=random:ratio=0.4"),
    ("importance, 0.2 (default)", "linear"),
    ("random, 0.2", "linear:retention=random"),
]
FINE_GRAINED = ["caltech101", "oxford_flowers", "oxford_pets", "stanford_cars"]
ALL = ["zero_shot", "linear", "ridge", "gda", "default"]
WITH_TOWERS = ["zero_shot", "linear", "prompt", "self_attention", "ridge", "gda", "default"]


class Evaluate:
    """The command, with what it prints under it."""

    def __init__(self, binary):
        self.binary = binary

    def __call__(self, data, strategies, *options):
        """Runs the command on `data`, a list of arguments; gives its rows by strategy, and every order's in a list."""
        arguments = [*data, *options, "--strategies", ",".join(strategies)]
        print("\n```sh\n" + shlex.join(["clipkeep", "evaluate", *arguments]) + "\n```", flush=True)
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            command = [self.binary, "evaluate", *arguments, "--json", file.name]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if ended.returncode:
                sys.exit(f"it ended with {ended.returncode}")
            report = json.load(file)
        return {row["name"]: row for row in report["rows"]}, ended.stdout


def percent(share):
    return "" if share is None else f"{100 * share:.1f}"


def table(head, rows):
    print("\n" + "| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    sys.stdout.flush()


def orders(text):
    print("\n```text\n" + text.rstrip() + "\n```", flush=True)


def ablation(evaluate, features):
    print("\n# Rehearsal and retention")
    data = ["--features", str(features / "imagenet"), "--tasks", "10", "--order", "1993", "--seeds", "3"]
    rows, text = evaluate(data, [strategy for _, strategy in ABLATION])
    columns = ["average", "last", "forgetting", "backward_transfer", "forward_transfer"]
    line = lambda row: [percent(row[column]) for column in columns] + [f"{row['bytes'] / 1e6:.1f}"]
    head = ["", "average", "last", "forgetting", "backward transfer", "forward transfer", "MB stored"]
    table(head, [[name, *line(rows[strategy])] for name, strategy in ABLATION])
    orders(text)


def masks(evaluate, features, images):
    print("\n# The importance mask against a random one")
    strategies = [strategy for _, strategy in MASKS]
    five = ["--order", "1993", "--seeds", "5"]
    real, real_text = evaluate(["--features", str(features / "imagenet"), "--tasks", "10", *five], strategies)
    small, small_text = evaluate([*images, "--tasks", "4", *five], strategies)
    line = lambda row: [percent(row[column]) for column in ["average", "last", "forgetting"]]
    head = ["`linear` with", "ImageNet average", "last", "forgetting", "CIFAR-100 novel average", "last", "forgetting"]
    table(head, [[name, *line(real[strategy]), *line(small[strategy])] for name, strategy in MASKS])
    orders(real_text + "\n" + small_text)


def more_tasks(evaluate, features):
    print("\n# More tasks")
    last, texts = {}, []
    for tasks in [10, 20, 50]:
        data = ["--features", str(features / "imagenet"), "--tasks", str(tasks), "--order", "1993", "--seeds", "3"]
        rows, text = evaluate(data, ["linear", "default"])
        texts.append(text)
        for name, row in rows.items():
            last.setdefault(name, []).append(percent(row["last"]))
    table(["last accuracy", "10 tasks", "20 tasks", "50 tasks"], [[f"`{name}`", *of] for name, of in last.items()])
    orders("\n".join(texts))


def fine_grained(evaluate, features):
    print("\n# Other data, anchored by examples")
    last, texts = {name: [] for name in ALL}, []
    for data in FINE_GRAINED:
        arguments = ["--features", str(features / data), "--tasks", "10", "--order", "1993", "--seeds", "3"]
        rows, text = evaluate(arguments, ALL, "--anchors", "examples")
        texts.append(text)
        for name, row in rows.items():
            last[name].append(row["last"])
    line = lambda of: [*map(percent, of), percent(mean(of))]
    table(["last accuracy", *FINE_GRAINED, "mean"], [[f"`{name}`", *line(of)] for name, of in last.items()])
    orders("\n".join(texts))


def through_the_backbone(evaluate, images):
    print("\n# Images through the embedded backbone")
    rows, text = evaluate([*images, "--tasks", "4", "--order", "given"], WITH_TOWERS)
    line = lambda row: [*(percent(row[of]) for of in ["average", "last", "forgetting"]), f"{row['seconds_per_task']:.2f}"]
    head = ["strategy", "average", "last", "forgetting", "seconds a task"]
    table(head, [[f"`{name}`", *line(row)] for name, row in rows.items()])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    given = parser.parse_args()
    evaluate = Evaluate(given.clipkeep)
    part = lambda name: [str(given.images / f"novel-task{task}-{name}.zip") for task in range(1, 5)]
    images = ["--train", *part("train"), "--test", *part("test")]
    through_the_backbone(evaluate, images)
    ablation(evaluate, given.features)
    fine_grained(evaluate, given.features)
    more_tasks(evaluate, given.features)
    masks(evaluate, given.features, images)


if __name__ == "__main__":
    main()
