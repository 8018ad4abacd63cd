"""The usual Python server for the same work: a form with a JPEG in, probabilities of labels out, batches by LitServe, the tower by PyTorch.

    python bench/litserve_clip.py CLIP --port 8090 --dtype bf16 --threads 2

Started by serving.py, in its virtual environment. CLIP is a directory in Hugging Face's layout.
"""

import argparse

import litserve
import torch
from fastapi import Request
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from clip_transform import clip_transform


class Classify(litserve.LitAPI):
    def __init__(self, given, **options):
        super().__init__(**options)
        self.given, self.dtype = given, DTYPES[given.dtype]

    def setup(self, device):
        torch.set_num_threads(1 if self.given.worker_per_thread else self.given.threads)
        torch.manual_seed(0)
        model = CLIPVisionModelWithProjection.from_pretrained(self.given.clip, attn_implementation="sdpa")
        self.model = model.eval().to(device, self.dtype)
        anchors = torch.randn(self.given.labels, model.config.projection_dim)
        self.anchors = torch.nn.functional.normalize(anchors, dim=1).to(device, self.dtype)
        self.transform = clip_transform()
        if self.given.compile:
            self.compile(model.config.image_size)

    @torch.inference_mode()
    def compile(self, side):
        """For one image, and for batches of any size: all that a server meets, before it is ready."""
        self.model = torch.compile(self.model)
        for batch in [1, self.given.batch, self.given.batch // 2 + 1]:
            self.predict(torch.zeros(batch, 3, side, side))

    def decode_request(self, request: Request):
        return self.transform(Image.open(request["image"].file).convert("RGB"))

    def batch(self, inputs):
        return torch.stack(inputs)

    @torch.inference_mode()
    def predict(self, pixels):
        pixels = pixels if pixels.dim() == 4 else pixels[None]
        features = self.model(pixel_values=pixels.to(self.anchors.device, self.dtype)).image_embeds
        logits = 100 * torch.nn.functional.normalize(features, dim=1) @ self.anchors.T
        return logits.softmax(dim=1).float().cpu()

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        best = output.reshape(-1).topk(5)
        return {"classes": [{"label": int(i), "probability": float(p)} for p, i in zip(best.values, best.indices)]}


DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("clip")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", choices=[*DTYPES], default="f32")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--worker-per-thread", action="store_true", help="a process for each, with a model of its own")
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="by torch.compile, which needs a compiler for C++")
    given = parser.parse_args()
    api = Classify(given, max_batch_size=given.batch, batch_timeout=0.005)
    accelerator, _, number = given.device.partition(":")
    devices = [int(number)] if number else "auto"
    workers = given.threads if given.worker_per_thread else 1
    server = litserve.LitServer(api, accelerator=accelerator, devices=devices, workers_per_device=workers)
    server.run(port=given.port, host="127.0.0.1", log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
