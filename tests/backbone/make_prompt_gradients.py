"""Makes the numbers that prompts.rs holds the embedded backbone's context gradients to, with `transformers`.

    python make_prompt_gradients.py   # prints them

Context vectors stand between the start token and the class's name, CoOp's way. transformers' CLIPTextModel takes token
ids only, so its token embedding is made to answer with the vectors at their places; all else is its own. Made with torch
2.15, transformers 5.24 and tokenizers 0.23, in float64.
"""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import CLIPModel

MODEL = Path(__file__).parents[2] / "assets/mini-clip"
WORDS = ["cat", "pickup truck", "crab"]
TEMPLATE = "a good photo of a {}."
VECTORS = 4


class Contextual(torch.nn.Module):
    """A token embedding that answers with `context` at the places after the start."""

    def __init__(self, table, context):
        super().__init__()
        self.table, self.context = table, context

    def forward(self, ids):
        rows = self.table(ids)
        k = len(self.context)
        return torch.cat([rows[:, :1], self.context.expand(len(ids), -1, -1), rows[:, 1 + k :]], 1)


def main():
    model = CLIPModel.from_pretrained(MODEL, dtype=torch.float64).eval().requires_grad_(False)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    table = model.text_model.embeddings.token_embedding
    before = tokenizer.encode(TEMPLATE.split("{}")[0], add_special_tokens=False).ids

    # A sine is a context that the test can make again.
    places = torch.arange(VECTORS * table.weight.shape[1], dtype=torch.float64)
    context = (0.05 * torch.sin(places)).reshape(VECTORS, -1).requires_grad_()

    rows = []
    for words in WORDS:
        ids = tokenizer.encode(TEMPLATE.format(words)).ids
        assert ids[1 : 1 + len(before)] == before
        rows.append([ids[0]] + [0] * VECTORS + ids[1 + len(before) :])
    end = rows[0][-1]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows])

    model.text_model.embeddings.token_embedding = Contextual(table, context)
    features = model.get_text_features(input_ids=ids)
    features = getattr(features, "pooler_output", features)

    # Cross-entropy of an image embedding, a sine too, that is of the second class.
    image = torch.sin(torch.arange(features.shape[1], dtype=torch.float64))
    embeddings = torch.nn.functional.normalize(features, dim=-1)
    logits = 10 * embeddings @ torch.nn.functional.normalize(image, dim=0)
    loss = torch.nn.functional.cross_entropy(logits[None], torch.tensor([1]))
    loss.backward()
    for name, values in [
        ("features", features[:, :4]),
        ("loss", loss),
        ("gradient norm", context.grad.norm()),
        ("gradient", context.grad[:, :4]),
    ]:
        print(name, np.array2string(values.detach().numpy(), precision=6, separator=", "))


if __name__ == "__main__":
    main()
