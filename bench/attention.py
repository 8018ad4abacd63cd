"""Attention of one layer on a GPU, in bfloat16: our towers' kernel, candle-flash-attn's, PyTorch's SDPA, and plain products with a
softmax between.

    python3 bench/attention.py --build    where scripts/build-cuda has run: needs no GPU
    python3 bench/attention.py            where there is one, with PyTorch as bench/encode.py finds or installs it

--build compiles attention.cu with candle's kernel into target/attention/attention: candle-flash-attn's sources come from crates.io,
CUTLASS, which they need, from PyPI, CUDA's compiler from CUDA_HOME or from what scripts/build-cuda installed. Prints microseconds,
medians over the rounds, and each over ours.
"""

import argparse
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from statistics import median

import environment

HERE = Path(__file__).parent
FOLDER = Path("target/attention")
PROGRAM = FOLDER / "attention"
# The CUTLASS that this candle-flash-attn is built with.
CANDLE, CUTLASS = "0.11.1", "3.5.0.0"
KERNEL = "flash_fwd_hdim64_bf16_sm80.cu"
FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "--expt-extended-lambda", "--use_fast_math", "-w"]
FLAGS += ["-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__", "-U__CUDA_NO_HALF2_OPERATORS__"]
FLAGS += ["-U__CUDA_NO_BFLOAT16_CONVERSIONS__", "-DUSE_CUTLASS"]
# Images, tokens and heads of ViT-B/32, B/16 and L/14.
SHAPES = {"ViT-B/32": (256, 50, 12), "ViT-B/16": (64, 197, 12), "ViT-L/14": (64, 257, 16)}
HEAD, WARM_UP, LAUNCHES = 64, 20, 200


def toolkit():
    given = os.environ.get("CUDA_HOME")
    found = [Path(given)] if given else list(Path("target/cuda-toolkit/lib").glob("python3*/site-packages/nvidia/cu13"))
    if not found:
        sys.exit("no CUDA compiler: set CUDA_HOME, or run scripts/build-cuda, which installs one")
    return found[0]


def candle_kernels():
    """Where candle-flash-attn's kernels are: a crate that needs it has cargo fetch them."""
    crate = FOLDER / "candle"
    (crate / "src").mkdir(parents=True, exist_ok=True)
    (crate / "src/lib.rs").touch()
    package = '[package]\nname = "kernels"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n[dependencies]\n'
    (crate / "Cargo.toml").write_text(f'{package}candle-flash-attn = "={CANDLE}"\n')
    command = ["cargo", "metadata", "--format-version", "1", "--manifest-path", crate / "Cargo.toml"]
    packages = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["packages"]
    [manifest] = [package["manifest_path"] for package in packages if package["name"] == "candle-flash-attn"]
    return Path(manifest).parent / "kernels"


def cutlass():
    folder = FOLDER / "cutlass"
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", FOLDER]
        subprocess.run([*pip, f"nvidia-cutlass=={CUTLASS}"], check=True)
        [wheel] = FOLDER.glob("nvidia_cutlass-*.whl")
        zipfile.ZipFile(wheel).extractall(folder)
    return folder / "cutlass_library/source/include"


def build(capability):
    cuda, candle = toolkit(), candle_kernels()
    includes = [f"-I{path}" for path in [candle, cutlass(), HERE.parent / "crates/towers/src/cuda"]]
    architecture = f"-gencode=arch=compute_{capability},code=sm_{capability}"
    command = [cuda / "bin/nvcc", *FLAGS, architecture, *includes, HERE / "attention.cu", candle / KERNEL, "-o", PROGRAM]
    subprocess.run(command, check=True)
    print(PROGRAM)


class Torch:
    """Attention by PyTorch, timed as attention.cu does."""

    def __init__(self, images, tokens, heads):
        import torch

        self.torch = torch
        mixing = torch.rand(images, tokens, 3, heads, HEAD, device="cuda", dtype=torch.bfloat16) * 2 - 1
        self.of = [part.transpose(1, 2) for part in mixing.unbind(2)]

    def sdpa(self):
        return self.torch.nn.functional.scaled_dot_product_attention(*self.of)

    def plain(self):
        queries, keys, values = self.of
        return (queries @ keys.transpose(2, 3) * HEAD**-0.5).softmax(3) @ values

    def microseconds(self, attend):
        begun, ended = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        with self.torch.inference_mode():
            for _ in range(WARM_UP):
                attend()
            begun.record()
            for _ in range(LAUNCHES):
                attend()
            ended.record()
        ended.synchronize()
        return begun.elapsed_time(ended) * 1000 / LAUNCHES


def measure(rounds):
    if not PROGRAM.exists():
        sys.exit(f"{PROGRAM} is missing: --build makes it")
    environment.enter(*environment.ENCODING, ["torch"])
    import torch

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, candle-flash-attn {CANDLE}\n")
    print("| | images | tokens | ours | candle-flash-attn | SDPA | plain | candle / ours | SDPA / ours | plain / ours | apart |")
    print("|---" * 11 + "|")
    for name, shape in SHAPES.items():
        found = json.loads(subprocess.check_output([PROGRAM, *map(str, shape), str(rounds)]))
        by_torch = Torch(*shape)
        times = [found["ours"], found["candle"]]
        for attend in [by_torch.sdpa, by_torch.plain]:
            times.append(median(by_torch.microseconds(attend) for _ in range(rounds)))
        line = [f"{time:.1f} µs" for time in times] + [f"{time / times[0]:.2f}" for time in times[1:]]
        print(f"| {name} | {shape[0]} | {shape[1]} | {' | '.join(line)} | {found['apart']:.5f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="store_true", help="compile, and measure nothing")
    parser.add_argument("--capability", default="90", help="of the GPU, such as 89 for 8.9 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    build(given.capability) if given.build else measure(given.rounds)


if __name__ == "__main__":
    main()
