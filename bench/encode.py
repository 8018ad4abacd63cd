"""Compares `clipkeep bench encode` with PyTorch, ONNX Runtime and OpenVINO on one machine: image towers of CLIP's shapes with
made-up weights, the same threads, runs that take turns.

    python3 bench/encode.py --shapes vit-b-32 --batches 1 8 32 --threads 2
    python3 bench/encode.py --dtype int8
    python3 bench/encode.py --dtype bf16 --images PHOTOS
    python3 bench/encode.py --dtype bf16 --device cuda:0 --batches 1 8 32 128 256
    python3 bench/encode.py --dtype bf16 --device cuda:0 --batches 1 8 32 128 256 --resident

Installs the others from PyPI into target/bench-venv the first time, unless this Python has them. Prints images a second, medians
over the rounds, ours over each of the others, ours over the best of them, which is what counts, and the smallest cosine of our
features with those in f32 on the CPU: of noise or, with --images, of 256 photographs at most. Ours is then timed with
photographs, too; what pixels hold makes no difference to that. Pixels are what each takes: ours are bytes, the others' are normalised,
in f32, and where they are in the host's memory are rounded as part of a run.

The share of peak, on the CPU, is our operations a second, counted as plain products of all tokens in all layers, over those of a loop
of nothing but the instruction that the dtype multiplies by (bench/peak.py), before and after a shape. Other ways to multiply can
bring it above 1.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import environment
import peak
import programs

IMAGE_SIZE = 224


def tower(width, layers, patch_size, dim):
    """As transformers describes one. CLIP's MLPs are four times as wide as a token, and its heads 64."""
    of_width = dict(hidden_size=width, intermediate_size=4 * width, num_attention_heads=width // 64)
    return dict(**of_width, num_hidden_layers=layers, patch_size=patch_size, projection_dim=dim)


SHAPES = {"vit-b-32": tower(768, 12, 32, 512), "vit-b-16": tower(768, 12, 16, 512), "vit-l-14": tower(1024, 24, 14, 768)}
UNROUNDED = ["torch", "torch-compile", "onnxruntime", "openvino"]
IN_BF16 = ["torch-bf16", "torch-bf16-compile", "openvino-bf16"]
# On a GPU, with its launches recorded.
RECORDED = ["torch-bf16-graphs"]
IN_INT8 = ["onnxruntime-int8"]
# Those that do the same, by our dtype.
PEERS = {
    "auto": UNROUNDED + IN_BF16,
    "f32": UNROUNDED,
    "bf16": IN_BF16,
    # Nobody else multiplies whole numbers of 16 bits: against those that round nothing.
    "int16": UNROUNDED,
    "int8": IN_INT8,
}


# Runs before the first that counts: compilers need one, and recorders of launches two more.
WARM_UP = 3


class Engines:
    """Ways to run one tower; each is a function from pixels (a NumPy array) to a function that encodes them."""

    def __init__(self, shape, given):
        import torch
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        torch.set_num_threads(given.threads)
        torch.manual_seed(0)
        # What was compiled for another shape is forgotten, and nothing falls back to what is not compiled.
        torch._dynamo.reset()
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        torch._dynamo.config.recompile_limit = len(given.batches) * len(given.engines)
        self.torch, self.given = torch, given
        config = CLIPVisionConfig(**SHAPES[shape], image_size=IMAGE_SIZE)
        model = CLIPVisionModelWithProjection._from_config(config, attn_implementation="sdpa").eval()

        class Features(torch.nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, pixels):
                return self.model(pixel_values=pixels).image_embeds

        self.model = Features(model)
        self.folder = tempfile.TemporaryDirectory()
        self.onnx = Path(self.folder.name) / "tower.onnx"
        if any(name.startswith(("onnx", "openvino")) for name in given.engines):
            example = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
            axes = {"pixels": {0: "n"}, "features": {0: "n"}}
            names_of = dict(input_names=["pixels"], output_names=["features"])
            torch.onnx.export(self.model, (example,), self.onnx, dynamo=False, dynamic_axes=axes, **names_of)

    def make(self, name):
        kind, *options = name.split("-")
        return getattr(self, f"make_{kind}")(options)

    def make_torch(self, options):
        import copy

        torch, model = self.torch, copy.deepcopy(self.model)
        dtype = torch.bfloat16 if "bf16" in options else torch.float32
        model = model.to(self.given.device, dtype, memory_format=torch.channels_last)
        if "graphs" in options:
            model = torch.compile(model, mode="reduce-overhead", dynamic=False)
        elif "compile" in options:
            model = torch.compile(model, dynamic=False)
        place = lambda pixels: torch.from_numpy(pixels).to(self.given.device, dtype, memory_format=torch.channels_last)

        def prepare(pixels):
            placed = place(pixels) if self.given.resident else None

            def run():
                # Every run ends with the features here, so that a GPU is waited for.
                with torch.inference_mode():
                    return model(place(pixels) if placed is None else placed).float().cpu().numpy()

            return run

        return prepare

    def make_onnxruntime(self, options):
        import onnxruntime

        model = self.onnx
        if "int8" in options:
            from onnxruntime.quantization import quantize_dynamic

            model = self.onnx.with_suffix(".int8.onnx")
            # By columns and in seven bits, as its documentation advises for processors without VNNI.
            quantize_dynamic(self.onnx, model, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True)
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = self.given.threads
        session = onnxruntime.InferenceSession(model, session_options, providers=["CPUExecutionProvider"])
        return lambda pixels: lambda: session.run(None, {"pixels": pixels})[0]

    def make_openvino(self, options):
        import openvino

        precision = "bf16" if "bf16" in options else "f32"
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self.given.threads,
        }
        model = openvino.Core().compile_model(self.onnx, "CPU", hints)
        return lambda pixels: lambda: model(pixels)[0]


def ours(given, shape, *flags):
    """What we measure of each batch, in their order."""
    options = ["--json", "--shape", shape, "--threads", given.threads, "--dtype", given.dtype, "--device", given.device, *flags]
    options += ["--resident"] * given.resident
    if given.images:
        options += ["--images", given.images]
    return programs.bench(given.clipkeep, "encode", *options, "--batch", *given.batches)


def operations(shape):
    """Multiplications and additions an image, where every token goes through every layer in plain products."""
    of = SHAPES[shape]
    width, patches = of["hidden_size"], (IMAGE_SIZE // of["patch_size"]) ** 2
    tokens = patches + 1
    embedding = 2 * patches * 3 * of["patch_size"] ** 2 * width
    products = 2 * tokens * width * (4 * width + 2 * of["intermediate_size"])
    attention = 4 * tokens**2 * width
    return embedding + of["num_hidden_layers"] * (products + attention) + 2 * width * of["projection_dim"]


def warm_up(run, seconds):
    """As `clipkeep bench encode` does."""
    run()
    first = time.perf_counter()
    for _ in range(WARM_UP - 1):
        if time.perf_counter() - first > seconds:
            break
        run()


def images_per_second(run, images, seconds):
    """By as many runs as `clipkeep bench encode` takes."""
    times, started = [], time.perf_counter()
    since = lambda: time.perf_counter() - started
    while since() < seconds or not times or len(times) < 5 and since() < 5 * seconds:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return images / median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each engine in each round (default: %(default)s)")
    parser.add_argument("--dtype", choices=list(PEERS), default="f32", help="ours (default: %(default)s)")
    parser.add_argument("--resident", action="store_true", help="pixels lie on the device already")
    parser.add_argument("--images", metavar="PHOTOS", help="a directory of photographs, whose features are compared")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (default: %(default)s)")
    every = UNROUNDED + IN_BF16 + RECORDED + IN_INT8
    parser.add_argument("--engines", nargs="*", choices=every, help="the others (default: those in our dtype)")
    parser.add_argument("--clipkeep", default="target/release/clipkeep", help="the program (default: %(default)s)")
    given = parser.parse_args()
    if given.engines is None:
        given.engines = PEERS[given.dtype]
        if given.device != "cpu":
            given.engines = [name for name in given.engines if name.startswith("torch")]
            given.engines += RECORDED * (given.dtype == "bf16")
    of_torch_alone = all(name.startswith("torch") for name in given.engines)
    environment.enter(*environment.ENCODING, ["torch", "transformers", "numpy"] if of_torch_alone else None)

    import numpy

    with_onnx = [package for package in ["onnxruntime", "openvino"] if any(name.startswith(package) for name in given.engines)]
    print(environment.versions(sys.executable, "torch", "transformers", *with_onnx) + "\n")
    over = [f"ours / {name}" for name in [*given.engines, "best"]]
    head = ["shape", "batch", "clipkeep", *given.engines, *over, "cosine", "share of peak"]
    loops = peak.build() if given.device == "cpu" and given.dtype in peak.INSTRUCTIONS else None
    measure_peak = lambda: peak.operations_per_second(loops, given.dtype, given.threads) if loops else float("nan")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    for shape in given.shapes:
        before = measure_peak()
        engines = Engines(shape, given)
        noise = numpy.random.default_rng(0)
        pixels = [noise.standard_normal((batch, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=numpy.float32) for batch in given.batches]
        makers = {name: engines.make(name) for name in given.engines}
        prepared = {name: [prepare(of) for of in pixels] for name, prepare in makers.items()}
        for run in [run for runs in prepared.values() for run in runs]:
            warm_up(run, given.seconds)
        mine, theirs = [], {name: [] for name in prepared}
        for left in reversed(range(given.rounds)):
            # The last one compares the features, too.
            found = ours(given, shape, "--seconds", str(given.seconds), *["--cosine"] * (left == 0))
            mine.append([of["images_per_second"] for of in found])
            for name, runs in prepared.items():
                rates = [images_per_second(run, len(of), given.seconds) for run, of in zip(runs, pixels)]
                theirs[name].append(rates)
        cosines = [of["cosine"] for of in found]
        at_most = median([before, measure_peak()])
        for place, batch in enumerate(given.batches):
            rate = median(rates[place] for rates in mine)
            of = [median(rates[place] for rates in theirs[name]) for name in given.engines]
            ratios = [rate / other for other in [*of, max(of, default=float("nan"))]]
            line = [f"{value:.1f}" for value in [rate, *of]] + [f"{ratio:.2f}" for ratio in ratios]
            line += [f"{cosines[place]:.5f}", f"{rate * operations(shape) / at_most:.2f}" if loops else ""]
            print(f"| {shape} | {batch} | " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    main()
