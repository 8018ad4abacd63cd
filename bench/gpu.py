"""Everything that is measured on a GPU, within a quarter of an hour.

    python3 bench/gpu.py PHOTOS --towers-test PROGRAM
    python3 bench/gpu.py PHOTOS --dry-run

PHOTOS is a directory of JPEG files. Runs the towers' tests, encoding with pixels on the device and in the host's memory, attention,
a server beside others, and a server that learns, in this order, by the other scripts of this folder. Each has a limit, and what those
before it left of theirs; one that fails or takes too long keeps none of the others from running. Ends with what became of each, and
with a status other than 0 if one failed.

Before that, on any machine: scripts/build-cuda; `python3 bench/attention.py --build`; and the tests, in an environment as that of
scripts/build-cuda, by `cargo test --release -p clipkeep-towers --lib --features cuda --no-run`, which tells where they are. What the
scripts compare with should be there already, in this Python or in target/: its installation would count. Where PyTorch's compiler
takes longer than there is time for, --engines with nothing behind it measures ours alone.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import programs

# Seconds to end in, for those that took too long: they have servers to end, too.
GRACE = 10
BATCHES = [1, 8, 32, 128, 256]


class Step(NamedTuple):
    name: str
    seconds: float
    command: list


def steps(given):
    """Their limits are 14 minutes in all: the last of them may take its time to end in."""
    of_device = ["--device", given.device, "--clipkeep", given.clipkeep]
    script = lambda name, *options: [sys.executable, programs.HERE / name, *options]
    encode = script("encode.py", "--dtype", "bf16", *of_device, "--rounds", 5, "--seconds", 0.3)
    encode += ["--batches", *BATCHES, "--engines", *given.engines]
    resident = {"vit-b-32": 105, "vit-b-16": 105, "vit-l-14": 170}
    # They find what PyTorch compiled for the others.
    from_host = {"vit-b-32": 55, "vit-b-16": 55, "vit-l-14": 80}
    serving = script("serving.py", given.photos, "--dtype", "bf16", *of_device, "--rounds", 5, "--seconds", 1.2)
    serving += ["--clients", 1, 64, "--litserve-batch", 64, "--peers", *given.peers]
    return [
        *([Step("towers' tests", 30, [given.towers_test, "cuda", "--nocapture"])] if given.towers_test else []),
        *(Step(f"{shape}, resident", limit, [*encode, "--resident", "--shapes", shape]) for shape, limit in resident.items()),
        *(Step(f"{shape}, from the host", limit, [*encode, "--shapes", shape]) for shape, limit in from_host.items()),
        Step("attention", 30, script("attention.py")),
        Step("serving", 130, serving),
        Step("learning", 80, script("learning.py", given.photos, *of_device)),
    ]


def run(command, seconds, **options):
    """What became of it."""
    try:
        process = subprocess.Popen(command, start_new_session=True, **options)
    except OSError as error:
        return str(error)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"took longer than {seconds:g} s"
    finally:
        stop(process)
    return "ok" if status == 0 else f"ended with {status}"


def stop(process):
    """As Ctrl+C does, so that scripts end what they started, and then for good."""
    for number, patience in [(signal.SIGINT, GRACE), (signal.SIGKILL, None)]:
        if process.poll() is None:
            os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--device", default="cuda:0", help="(default: %(default)s)")
    parser.add_argument("--clipkeep", default="target/cuda/release/clipkeep", help="the program (default: %(default)s)")
    parser.add_argument("--towers-test", metavar="PROGRAM", help="the towers' tests, if they are to run, too")
    parser.add_argument("--engines", nargs="*", default=["torch-bf16-graphs"], help="of encode.py (default: %(default)s)")
    parser.add_argument("--peers", nargs="+", default=["litserve", "infinity"], help="of serving.py (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands alone")
    given = parser.parse_args()
    todo = [Step(name, seconds, [str(part) for part in command]) for name, seconds, command in steps(given)]
    if given.dry_run:
        for step in todo:
            print(f"# {step.name}: {step.seconds} s\n{shlex.join(step.command)}")
        return
    for path in [given.photos, Path(given.clipkeep)]:
        if not path.exists():
            sys.exit(f"{path} is missing")
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    # Whoever ends this script ends the step that runs, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    end = time.monotonic() + sum(step.seconds for step in todo)
    report = []
    for place, step in enumerate(todo):
        begun = time.monotonic()
        limit = round(end - begun - sum(later.seconds for later in todo[place + 1 :]))
        print(f"\n=== {step.name}, {limit} s at most: {shlex.join(step.command)}", flush=True)
        # Scripts look for the libraries themselves, and PyTorch has its own.
        environ = programs.environ() if step.command[0] == given.towers_test else os.environ
        outcome = run(step.command, limit, env=environ)
        report.append((step.name, outcome, time.monotonic() - begun))
    print("\n| step | outcome | seconds |\n|---|---|---|")
    for name, outcome, seconds in report:
        print(f"| {name} | {outcome} | {seconds:.0f} |")
    sys.exit(any(outcome != "ok" for _, outcome, _ in report))


if __name__ == "__main__":
    main()
