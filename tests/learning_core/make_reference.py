"""Reference numbers for the self-attention adapter, by PyTorch: prints what src/adapter/self_attention.rs pins.

    python tests/learning_core/make_reference.py        needs torch 2

Every value is a sine, so that both sides make the same tensors without sharing a file.
"""

import torch

TOKENS, WIDTH, HEADS, DIM, ROWS, CLASSES, SCALE = 5, 8, 2, 6, 3, 4, 7.0
COLUMNS = torch.tensor([1, 3, 0])
NAMES = [
    "norm1.weight", "norm1.bias", "query.weight", "query.bias", "key.weight", "key.bias", "value.weight",
    "value.bias", "out.weight", "out.bias", "norm2.weight", "norm2.bias", "projection",
]


def sines(seed, *shape):
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + seed).reshape(shape)


def shape(name):
    if name == "projection":
        return (WIDTH, DIM)
    return (WIDTH, WIDTH) if name.endswith(".weight") and not name.startswith("norm") else (WIDTH,)


def main():
    parameters = {name: sines(place, *shape(name)).requires_grad_() for place, name in enumerate(NAMES)}
    rows = sines(0.5, ROWS, TOKENS, WIDTH)
    anchors = torch.nn.functional.normalize(sines(0.25, CLASSES, DIM), dim=1)

    attention = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)
    seen = torch.nn.functional.layer_norm(rows, (WIDTH,), parameters["norm1.weight"], parameters["norm1.bias"], 1e-5)
    # torch keeps query, key and value below one another and multiplies from the right.
    joined = torch.cat([parameters[f"{name}.weight"].T for name in ("query", "key", "value")])
    biases = torch.cat([parameters[f"{name}.bias"] for name in ("query", "key", "value")])
    attended = torch.nn.functional.multi_head_attention_forward(
        seen.transpose(0, 1), seen.transpose(0, 1), seen.transpose(0, 1), WIDTH, HEADS, joined, biases, None, None,
        False, 0.0, parameters["out.weight"].T, parameters["out.bias"], need_weights=False,
    )[0].transpose(0, 1)
    assert attention.head_dim == WIDTH // HEADS
    states = (rows + attended)[:, 0]
    normed = torch.nn.functional.layer_norm(states, (WIDTH,), parameters["norm2.weight"], parameters["norm2.bias"], 1e-5)
    outputs = normed @ parameters["projection"]
    logits = SCALE * torch.nn.functional.normalize(outputs, dim=1) @ anchors.T
    loss = torch.nn.functional.cross_entropy(logits, COLUMNS)
    loss.backward()

    print(f"outputs[2]: {[round(value, 9) for value in outputs[2].tolist()]}")
    print(f"loss: {loss.item():.12f}")
    for name in NAMES:
        gradient = parameters[name].grad.flatten()
        print(f'("{name}", {gradient[-2].item():.12f}, {gradient.norm().item():.12f}),')


main()
