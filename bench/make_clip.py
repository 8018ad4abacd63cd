"""Makes a CLIP of ViT-B/32's shape with random weights, in Hugging Face's layout, with the tokenizer of the embedded one.

    python bench/make_clip.py DIRECTORY

Started by serving.py, in a virtual environment: so that all servers do the same work on the same weights.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

MINI = Path(__file__).parent.parent / "assets" / "mini-clip"


def main():
    directory = Path(sys.argv[1])
    torch.manual_seed(0)
    mini = json.loads((MINI / "config.json").read_text())["text_config"]
    ids = {name: value for name, value in mini.items() if name == "vocab_size" or name.endswith("_token_id")}
    model = CLIPModel(CLIPConfig(text_config=ids, vision_config={}))
    model.save_pretrained(directory)
    CLIPImageProcessor().save_pretrained(directory)
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(MINI / file, directory)


if __name__ == "__main__":
    main()
