"""CLIP's preprocessing as Python servers do it: Pillow and torchvision."""

import torch
from torchvision.transforms import v2

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def cropped():
    """From a Pillow image in RGB to bytes (3, 224, 224)."""
    bicubic = v2.InterpolationMode.BICUBIC
    return v2.Compose([v2.Resize(224, interpolation=bicubic, antialias=True), v2.CenterCrop(224), v2.PILToTensor()])


def clip_transform():
    """From a Pillow image in RGB to normalised pixels (3, 224, 224)."""
    return v2.Compose([cropped(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
