#!/usr/bin/env python3
"""Train, export and evaluate mini-clip, a CLIP for 32x32 pictures.

    python train.py image  --data DIR --work WORK --minutes 48   # image tower
    python train.py text   --data DIR --work WORK --minutes 5    # tokenizer + text tower, export
    python train.py eval   --data DIR                            # accuracy and speed of the export

DIR holds `cifar100/` (base-train.zip, base-test.zip, base-train-teacher.npz,
novel-task*.zip) and `clip-vitb32/` (text_embeddings.npy, text_prompts.json).
Training reads base-train.zip, its teacher features and the text embeddings,
nothing else; `eval` alone opens the test and the novel zips.

Schedules follow the clock (`--minutes`), so a run ends on time on a busy
machine; the seed fixes initial weights and the order of data, and the number
of steps depends on the machine.
"""

import argparse
import copy
import io
import json
import math
import random
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

SEED = 20
HERE = Path(__file__).resolve().parent
SIZE, PATCH = 36, 6  # 32x32 pictures are enlarged: 36 patches see every pixel
GRID = SIZE // PATCH
WIDTH, LAYERS, HEADS, MLP = 192, 6, 6, 384
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS, TEXT_MLP = 128, 3, 4, 384
TEXT_POSITIONS, VOCAB = 32, 2048
DIM = 256  # of the shared space
TEACHER_DIM = 192
VAL_PER_CLASS = 20  # held out of base-train to watch a run
MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)
TEMPLATES = [
    "a photo of a {}.", "a good photo of a {}.", "a blurry photo of a {}.",
    "a bad photo of a {}.", "a small photo of a {}.", "a photo of the {}.",
    "a close-up photo of a {}.", "a cropped photo of a {}.", "a picture of a {}.",
    "an image of a {}.", "a bright photo of a {}.", "a dark photo of a {}.",
    "a photo of my {}.", "a photo of one {}.", "a low resolution photo of a {}.",
    "a {}", "the {}", "{}", "{}.", "a photo of a {}", "a photo of {}", "a good photo of a {}",
]
DEFAULT_TEMPLATE = "a good photo of a {}."


def spoken(folder):
    return folder.replace("_", " ").strip().lower()


# --- data -------------------------------------------------------------------


def read_zip(path):
    """Pictures (N, 3, 32, 32) uint8, entry names, class folder of each."""
    pictures, names = [], []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            if not entry.lower().endswith((".png", ".webp", ".jpg", ".jpeg")):
                continue
            image = Image.open(io.BytesIO(archive.read(entry))).convert("RGB")
            pictures.append(np.asarray(image).transpose(2, 0, 1))
            names.append(entry)
    return torch.from_numpy(np.stack(pictures)), names, [n.split("/")[-2] for n in names]


def normalise(pictures):
    """What CLIPImageProcessor does to square pictures (up to its rounding)."""
    x = F.interpolate(pictures.float(), (SIZE, SIZE), mode="bicubic", antialias=True)
    x = x.round().clamp(0, 255) / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def load_base_train(data):
    """base-train with its teacher features, split into train and validation."""
    pictures, names, folders = read_zip(data / "cifar100" / "base-train.zip")
    classes = sorted(set(folders))
    labels = torch.tensor([classes.index(f) for f in folders])
    teacher = np.load(data / "cifar100" / "base-train-teacher.npz")
    row = {n: i for i, n in enumerate(teacher["names"].tolist())}
    features = torch.from_numpy(teacher["features"].astype(np.float32))[[row[n] for n in names]]
    rng = np.random.default_rng(SEED)
    held = np.zeros(len(names), bool)
    for c in range(len(classes)):
        held[rng.choice(np.flatnonzero(labels.numpy() == c), VAL_PER_CLASS, replace=False)] = True
    held = torch.from_numpy(held)
    return classes, (pictures[~held], labels[~held], features[~held]), (pictures[held], labels[held])


def name_targets(data):
    """name -> target in the shared space, from real CLIP text embeddings.

    They lie in a narrow cone: each prompt form is centred, the forms of a name
    are averaged, the principal axes are kept and their spread evened half way.
    """
    prompts = json.loads((data / "clip-vitb32" / "text_prompts.json").read_text())
    vectors = np.load(data / "clip-vitb32" / "text_embeddings.npy").astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    split = []
    for prompt in prompts:
        text = prompt.lower().replace("_", " ").strip()
        form = "photo" if text.startswith("a photo of ") else "bare"
        text = text.removeprefix("a photo of ")
        for article in ("an ", "a "):
            if text.startswith(article):
                text = text.removeprefix(article)
                break
        split.append((form, text))
    for form in ("photo", "bare"):
        rows = [i for i, (f, _) in enumerate(split) if f == form]
        vectors[rows] -= vectors[rows].mean(0)
    by_name = {}
    for i, (_, name) in enumerate(split):
        by_name.setdefault(name, []).append(vectors[i])
    names = sorted(by_name)
    table = np.stack([np.mean(by_name[n], 0) for n in names])
    table -= table.mean(0)
    _, spread, axes = np.linalg.svd(table, full_matrices=False)
    table = table @ axes[:DIM].T / np.sqrt(spread[:DIM])
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    return dict(zip(names, torch.from_numpy(table).float()))


def class_targets(classes, known, labels, teacher):
    """Initial targets of the classes; where CLIP's list has no such name, a
    ridge map from the teacher's class means to the known targets gives one."""
    targets, found = torch.zeros(len(classes), DIM), []
    for c, folder in enumerate(classes):
        name = spoken(folder)
        exact = [known[name]] if name in known else []
        related = exact or [v for k, v in known.items() if k.split()[-1] == name]
        if related:
            targets[c] = F.normalize(torch.stack(related).mean(0), dim=0)
            found.append(c)
    means = torch.stack([teacher[labels == c].mean(0) for c in range(len(classes))])
    means = means / means.norm(dim=1).mean()
    x, y = means[found], targets[found]
    kernel = x @ x.T + 0.1 * torch.eye(len(found))
    guess = F.normalize(means @ x.T @ torch.linalg.solve(kernel, y), dim=1)
    has = torch.zeros(len(classes), dtype=torch.bool)
    has[found] = True
    return torch.where(has[:, None], targets, guess), has


def teacher_probabilities(teacher, labels, classes, folds=3):
    """Cross-fitted class probabilities of a linear probe on the teacher."""
    generator = torch.Generator().manual_seed(SEED)
    fold = torch.randint(folds, (len(labels),), generator=generator)
    x = teacher / teacher.std()
    out = torch.zeros(len(labels), classes)
    for f in range(folds):
        weight = torch.zeros(classes, x.shape[1], requires_grad=True)
        bias = torch.zeros(classes, requires_grad=True)
        optimizer = torch.optim.Adam([weight, bias], lr=0.03)
        for _ in range(120):
            logits = F.linear(x[fold != f], weight, bias)
            loss = F.cross_entropy(logits, labels[fold != f]) + 2e-3 * weight.square().sum() / 10
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            out[fold == f] = F.linear(x[fold == f], weight, bias).softmax(1)
    print(f"teacher probe, cross-fitted: {(out.argmax(1) == labels).float().mean():.3f}", flush=True)
    return out


def augment(pictures, out, strength):
    """Random resized crop, flip, rotation, shear, stretch, colour and cutout
    of a whole uint8 batch at once, resampled to out x out."""
    n = len(pictures)
    uniform = lambda low, high: torch.empty(n).uniform_(low, high)
    sometimes = lambda p: (torch.rand(n) < p).float()
    scale = torch.sqrt(uniform(1 - 0.55 * strength, 1.1))
    aspect = torch.exp(uniform(-0.25, 0.25) * strength)
    sx, sy = scale * aspect.sqrt(), scale / aspect.sqrt()
    angle = uniform(-0.35, 0.35) * sometimes(0.35 * strength)
    shear = uniform(-0.3, 0.3) * sometimes(0.3 * strength)
    flip = 1 - 2 * sometimes(0.5)
    tx = uniform(-1, 1) * ((1 - sx).clamp(min=0) + 0.08)
    ty = uniform(-1, 1) * ((1 - sy).clamp(min=0) + 0.08)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack([
        torch.stack([flip * sx * cos, sy * (shear - sin), tx], 1),
        torch.stack([flip * sx * sin, sy * cos, ty], 1)], 1)
    grid = F.affine_grid(theta, [n, 3, out, out], align_corners=False)
    x = F.grid_sample(pictures.float() / 255, grid, padding_mode="reflection", align_corners=False)
    shape = (n, 1, 1, 1)
    x = x * (1 + (uniform(-0.4, 0.4) * sometimes(0.5 * strength)).view(shape))
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * (1 + (uniform(-0.4, 0.5) * sometimes(0.5 * strength)).view(shape))
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (1 + (uniform(-0.8, 0.8) * sometimes(0.5 * strength)).view(shape))
    x = x.clamp(0, 1)
    sun = sometimes(0.05 * strength).view(shape)  # solarize
    x = torch.where((sun > 0) & (x > 0.6), 1 - x, x)
    x = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    side = out * 0.3
    cy, cx = uniform(0, out).view(n, 1, 1), uniform(0, out).view(n, 1, 1)
    line = torch.arange(out).float()
    hole = ((line.view(1, -1, 1) - cy).abs() < side / 2) & ((line.view(1, 1, -1) - cx).abs() < side / 2)
    hole &= sometimes(0.25 * strength).view(n, 1, 1) > 0
    return x.masked_fill(hole[:, None], 0.0)


def mix(x, *soft):
    """Mixup or cutmix of a batch and of everything that goes with it."""
    other = torch.randperm(len(x))
    keep = float(np.random.beta(0.8, 0.8))
    if random.random() < 0.5:
        x = keep * x + (1 - keep) * x[other]
    else:
        size = x.shape[-1]
        side = int(size * math.sqrt(1 - keep))
        top, left = random.randint(0, size - side), random.randint(0, size - side)
        x = x.clone()
        x[:, :, top:top + side, left:left + side] = x[other][:, :, top:top + side, left:left + side]
        keep = 1 - side * side / size / size
    return [x] + [keep * s + (1 - keep) * s[other] for s in soft]


# --- model (CLIP's, with q, k, v in one matrix; see `export`) -----------------


class Block(nn.Module):
    def __init__(self, width, heads, mlp, causal):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, mlp), nn.Linear(mlp, width)
        for linear in (self.qkv, self.out, self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=linear.in_features**-0.5 * 0.6)
            nn.init.zeros_(linear.bias)

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # written out: the fused kernel's backward is slow on so few tokens
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        if self.causal:
            scores = scores + torch.full((length, length), -torch.inf).triu(1)
        y = scores.softmax(-1).to(v.dtype) @ v
        x = x + self.out(y.transpose(1, 2).reshape(n, length, width))
        h = self.fc1(self.norm2(x))
        return x + self.fc2(h * torch.sigmoid(1.702 * h))


class ImageTower(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Linear(3 * PATCH * PATCH, WIDTH, bias=False)
        self.cls = nn.Parameter(torch.randn(WIDTH) * 0.02)
        self.position = nn.Parameter(torch.zeros(1 + GRID * GRID, WIDTH))
        self.norm_in, self.norm_out = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, HEADS, MLP, False) for _ in range(LAYERS))
        self.projection = nn.Linear(WIDTH, DIM, bias=False)
        nn.init.trunc_normal_(self.patch.weight, std=(3 * PATCH * PATCH) ** -0.5)
        nn.init.trunc_normal_(self.projection.weight, std=WIDTH**-0.5)

    @torch.no_grad()
    def local_start(self):
        """Let most heads start as small convolutions: positions are sines, a
        shift of which is a rotation, so queries rotated by an offset meet the
        keys of the patch at that offset."""
        size = WIDTH // HEADS
        count = size // 4
        line = torch.arange(GRID).float()
        omega = math.pi * (torch.arange(count).float() + 0.5) / GRID
        wave = torch.stack([(line[:, None] * omega).cos(), (line[:, None] * omega).sin()], 2).reshape(GRID, -1)
        place = torch.zeros(GRID, GRID, size)
        place[:, :, : size // 2] = wave[:, None]
        place[:, :, size // 2:] = wave[None]
        self.position.normal_(std=0.02)
        self.position[1:, :size] = 1.3 * place.reshape(-1, size)
        self.patch.weight[:size] *= 0.1
        generator = torch.Generator().manual_seed(SEED)
        around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        for block in self.blocks:
            order = torch.randperm(len(around), generator=generator).tolist()
            for head in range(HEADS - 2):
                rotation = torch.zeros(size, size)
                for i, offset in enumerate(around[order[head]]):
                    for j in range(count):
                        a, at = float(omega[j] * offset), i * size // 2 + 2 * j
                        rotation[at:at + 2, at:at + 2] = torch.tensor(
                            [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
                rows = slice(head * size, (head + 1) * size)
                block.qkv.weight[rows] *= 0.3
                block.qkv.weight[rows, :size] = 1.4 * rotation
                block.qkv.weight[WIDTH:2 * WIDTH][rows] *= 0.3
                block.qkv.weight[WIDTH:2 * WIDTH][rows, :size] = 1.4 * torch.eye(size)
            block.out.weight[:size] *= 0.1
            block.fc2.weight[:size] *= 0.1

    def forward(self, x):
        n, _, side, _ = x.shape
        g = side // PATCH
        x = x.view(n, 3, g, PATCH, g, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(n, g * g, -1)
        top, left = ((random.randint(0, GRID - g), random.randint(0, GRID - g)) if g < GRID else (0, 0))
        place = self.position[1:].view(GRID, GRID, WIDTH)[top:top + g, left:left + g].reshape(1, g * g, WIDTH)
        x = self.patch(x) + place
        x = torch.cat([(self.cls + self.position[0]).expand(n, 1, -1).to(x.dtype), x], 1)
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.norm_out(x[:, 0]))


class TextTower(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.token = nn.Embedding(vocabulary, TEXT_WIDTH)
        self.position = nn.Parameter(torch.randn(TEXT_POSITIONS, TEXT_WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block(TEXT_WIDTH, TEXT_HEADS, TEXT_MLP, True) for _ in range(TEXT_LAYERS))
        self.norm_out = nn.LayerNorm(TEXT_WIDTH)
        self.projection = nn.Linear(TEXT_WIDTH, DIM, bias=False)
        nn.init.normal_(self.token.weight, std=0.3)
        nn.init.trunc_normal_(self.projection.weight, std=TEXT_WIDTH**-0.5)

    def forward(self, ids):
        x = self.token(ids) + self.position[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        end = ids.argmax(1)  # the end token has the highest id
        return self.projection(self.norm_out(x[torch.arange(len(x)), end]))


def encode_images(tower, pictures, batch=200):
    tower.eval()
    with torch.no_grad():
        return torch.cat([tower(normalise(p)) for p in pictures.split(batch)])


# --- image tower ------------------------------------------------------------


def train_image(args):
    """Starts the workers. Each trains on its own batches and all write to one
    set of weights in shared memory without locks (Hogwild): no worker waits for
    another, which keeps two cores busy even when something else needs one."""
    torch.manual_seed(SEED), random.seed(SEED), np.random.seed(SEED)
    classes, (pictures, labels, teacher), held = load_base_train(args.data)
    known = name_targets(args.data)
    start_targets, has = class_targets(classes, known, labels, teacher)
    soft = teacher_probabilities(teacher, labels, len(classes))
    soft = 0.65 * F.one_hot(labels, len(classes)).float() + 0.35 * soft
    teacher = (teacher - teacher.mean(0)) / teacher.std(0).sqrt()
    teacher = teacher / teacher.square().mean().sqrt()
    print(f"{len(pictures)} pictures, {len(classes)} classes, {int(has.sum())} with CLIP text", flush=True)
    tower = ImageTower()
    tower.local_start()
    print(f"{sum(p.numel() for p in tower.parameters()) / 1e6:.2f} M parameters", flush=True)
    learned = nn.ModuleDict({
        "tower": tower,
        "head": nn.Linear(DIM, TEACHER_DIM),  # teacher features from the projected output
        "free": nn.ParameterList([
            torch.zeros(len(classes), DIM),  # learned part of the class targets
            torch.tensor(math.log(16.0)),
        ]),
    }).share_memory()
    args.work.mkdir(parents=True, exist_ok=True)
    data = (pictures, soft, teacher, start_targets, has, held)
    torch.multiprocessing.spawn(
        work, (args, classes, learned, data, time.time()), nprocs=args.workers)


def work(rank, args, classes, learned, data, start):
    torch.set_num_threads(1)
    torch.manual_seed(SEED + rank), random.seed(SEED + rank), np.random.seed(SEED + rank)
    pictures, soft, teacher, start_targets, has, (val_pictures, val_labels) = data
    tower, head, (drift, log_scale) = learned["tower"], learned["head"], learned["free"]
    average = copy.deepcopy(tower)
    for block in tower.blocks:
        block.compile(dynamic=False)
    hold = torch.where(has, 1.0, 0.1)[:, None]
    decay = [p for p in tower.parameters() if p.ndim == 2 and p is not tower.position]
    rest = [p for p in tower.parameters() if p.ndim != 2 or p is tower.position]
    optimizer = torch.optim.AdamW([
        {"params": decay, "weight_decay": 0.05},
        {"params": rest + list(head.parameters()) + [log_scale, drift], "weight_decay": 0.0},
    ], lr=1.0, betas=(0.9, 0.98), fused=True)

    total, step, views = args.minutes * 60, 0, 0
    queue, next_check, running = [], args.check * 60, {}
    while (done := (time.time() - start) / total) < 1:
        if len(queue) < args.batch:
            queue = torch.randperm(len(pictures)).tolist()
        rows, queue = torch.tensor(queue[:args.batch]), queue[args.batch:]
        side = PATCH * (4 if done < 0.33 else 5 if done < 0.63 else 6)
        strength = 0.7 if done < 0.8 else 0.4
        x, y, t = augment(pictures[rows], side, strength), soft[rows], teacher[rows]
        if done < 0.8 and random.random() < 0.35:
            x, y, t = mix(x, y, t)
        rate = args.lr * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            f = tower(x)
        f = f.float()
        cosine = F.normalize(f, dim=1) @ F.normalize(start_targets + drift, dim=1).T
        cross = -(y * F.log_softmax(cosine * log_scale.exp(), dim=1)).sum(1).mean()
        align = 1 - (y * cosine).sum(1).mean()
        distil = (head(f) - t).square().mean()
        prior = (hold * drift.square()).sum(1).mean()
        loss = cross + 0.3 * align + args.distil * distil + 0.5 * prior
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        step, views = step + 1, views + len(x)
        if rank:
            continue
        with torch.no_grad():
            log_scale.clamp_(max=math.log(40.0))
            keep = min(0.998, (step + 1) / (step + 20))
            torch._foreach_lerp_(list(average.parameters()), list(tower.parameters()), 1 - keep)
            for key, value in (("cross", cross), ("align", align), ("distil", distil), ("prior", prior)):
                value = float(value.detach())
                running[key] = 0.98 * running.get(key, value) + 0.02 * value
        elapsed = time.time() - start
        if elapsed > next_check or elapsed >= total:
            next_check += args.check * 60
            targets = F.normalize(start_targets + drift, dim=1).detach()
            features = F.normalize(encode_images(average, val_pictures), dim=1)
            hits = (features @ targets.T).argmax(1).eq(val_labels).float().mean()
            print(f"{elapsed / 60:5.1f} min  side {side}  {views} views by worker 0  "
                  + "  ".join(f"{k} {v:.3f}" for k, v in running.items())
                  + f"  scale {float(log_scale.detach().exp()):.1f}  val {float(hits):.4f}", flush=True)
            torch.save({"tower": average.state_dict(), "classes": classes,
                        "log_scale": float(log_scale), "targets": targets}, args.work / "image.pt")


# --- text tower -------------------------------------------------------------


def make_tokenizer(names):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFC(), normalizers.Replace(Regex("[\\s_]+"), " "), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 2, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(names + [t.format("") for t in TEMPLATES] * 20, trainer)
    tokenizer.add_special_tokens([start, end])  # the highest ids
    first, last = tokenizer.token_to_id(start), tokenizer.token_to_id(end)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", pair=f"{start} $A {end} {start} $B {end}",
        special_tokens=[(start, first), (end, last)])
    return tokenizer, first, last


def tokenise(tokenizer, texts, end):
    ids = [e.ids for e in tokenizer.encode_batch(texts)]
    ids = [i if len(i) <= TEXT_POSITIONS else i[:TEXT_POSITIONS - 1] + [end] for i in ids]
    width = max(map(len, ids))
    return torch.tensor([i + [end] * (width - len(i)) for i in ids])


def phrase(name):
    template = random.choice(TEMPLATES) if random.random() < 0.7 else DEFAULT_TEMPLATE
    text = template.format(name)
    if name[0] in "aeiou" and random.random() < 0.5:
        text = text.replace(f" a {name}", f" an {name}")
    if random.random() < 0.08 and template.count(" a {}") and not name.endswith("s"):
        text = text.replace(f" a {name}", f" {name}s")
    if random.random() < 0.3:
        text = text.rstrip(".")
    return text


def train_text(args):
    torch.manual_seed(SEED), random.seed(SEED), np.random.seed(SEED)
    image = torch.load(args.work / "image.pt")
    known = name_targets(args.data)
    base = {spoken(c): t for c, t in zip(image["classes"], image["targets"])}
    known.update(base)
    names, own = sorted(known), sorted(base)
    table = torch.stack([known[n] for n in names])
    row = {n: i for i, n in enumerate(names)}
    tokenizer, first, last = make_tokenizer(names)
    tower = TextTower(tokenizer.get_vocab_size())
    print(f"{len(names)} names, vocabulary {tokenizer.get_vocab_size()}", flush=True)
    peak = 3e-3
    if args.resume:  # the towers may train side by side; this follows the last move of the targets
        tower.load_state_dict(torch.load(args.work / "text.pt"))
        peak = 7e-4
    average = copy.deepcopy(tower)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1.0, betas=(0.9, 0.98), weight_decay=0.02)
    total, start, step = args.minutes * 60, time.time(), 0
    while (done := (time.time() - start) / total) < 1:
        tokenizer.model.dropout = 0.1  # unknown names come in pieces
        batch = random.sample(names, 96) + random.sample(own, 32)
        where = torch.tensor([row[n] for n in batch])
        ids = tokenise(tokenizer, [phrase(n) for n in batch], last)
        rate = peak * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            f = tower(ids)
        cosine = F.normalize(f.float(), dim=1) @ table.T
        align = 1 - cosine.gather(1, where[:, None]).mean()
        # tell names apart as far as their targets do
        apart = F.kl_div((cosine * 20).log_softmax(1), (table[where] @ table.T * 20).log_softmax(1),
                         log_target=True, reduction="batchmean")
        loss = align + 0.2 * apart
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            keep = min(0.99, (step + 1) / (step + 20))
            torch._foreach_lerp_(list(average.parameters()), list(tower.parameters()), 1 - keep)
        step += 1
        if step % 100 == 0:
            print(f"text step {step}  {time.time() - start:.0f} s  align {float(align.detach()):.4f}  "
                  f"apart {float(apart.detach()):.4f}", flush=True)
    tokenizer.model.dropout = None
    torch.save(average.state_dict(), args.work / "text.pt")
    print(f"{step} text steps", flush=True)
    with torch.no_grad():
        for template in ("a photo of a {}.", DEFAULT_TEMPLATE, "{}"):
            f = F.normalize(average(tokenise(tokenizer, [template.format(n) for n in own], last)), dim=1)
            print(f"cosine of class texts to their targets, {template!r}: "
                  f"{float((f * table[[row[n] for n in own]]).sum(1).mean()):.4f}", flush=True)
    export(args.out, image, average, tokenizer, first, last)


# --- export -----------------------------------------------------------------


def tower_weights(prefix, blocks, width):
    out = {}
    for i, block in enumerate(blocks):
        at = f"{prefix}.encoder.layers.{i}"
        for j, part in enumerate("qkv"):
            rows = slice(j * width, (j + 1) * width)
            out[f"{at}.self_attn.{part}_proj.weight"] = block.qkv.weight[rows]
            out[f"{at}.self_attn.{part}_proj.bias"] = block.qkv.bias[rows]
        for ours, theirs in (("out", "self_attn.out_proj"), ("norm1", "layer_norm1"), ("norm2", "layer_norm2"),
                             ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2")):
            out[f"{at}.{theirs}.weight"] = getattr(block, ours).weight
            out[f"{at}.{theirs}.bias"] = getattr(block, ours).bias
    return out


@torch.no_grad()
def export(out, image, text, tokenizer, first, last):
    from transformers import CLIPConfig, CLIPModel

    tower = ImageTower()
    tower.load_state_dict(image["tower"])
    config = CLIPConfig(
        projection_dim=DIM, logit_scale_init_value=image["log_scale"],
        text_config=dict(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=TEXT_WIDTH, intermediate_size=TEXT_MLP,
            num_hidden_layers=TEXT_LAYERS, num_attention_heads=TEXT_HEADS, projection_dim=DIM,
            max_position_embeddings=TEXT_POSITIONS, hidden_act="quick_gelu",
            bos_token_id=first, eos_token_id=last, pad_token_id=last),
        vision_config=dict(
            hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            image_size=SIZE, patch_size=PATCH, projection_dim=DIM, hidden_act="quick_gelu"))
    weights = {
        "logit_scale": torch.tensor(image["log_scale"]),
        "visual_projection.weight": tower.projection.weight,
        "vision_model.embeddings.class_embedding": tower.cls,
        "vision_model.embeddings.patch_embedding.weight": tower.patch.weight.view(WIDTH, 3, PATCH, PATCH),
        "vision_model.embeddings.position_embedding.weight": tower.position,
        "vision_model.pre_layrnorm.weight": tower.norm_in.weight,
        "vision_model.pre_layrnorm.bias": tower.norm_in.bias,
        "vision_model.post_layernorm.weight": tower.norm_out.weight,
        "vision_model.post_layernorm.bias": tower.norm_out.bias,
        "text_projection.weight": text.projection.weight,
        "text_model.embeddings.token_embedding.weight": text.token.weight,
        "text_model.embeddings.position_embedding.weight": text.position,
        "text_model.final_layer_norm.weight": text.norm_out.weight,
        "text_model.final_layer_norm.bias": text.norm_out.bias,
        **tower_weights("vision_model", tower.blocks, WIDTH),
        **tower_weights("text_model", text.blocks, TEXT_WIDTH),
    }
    model = CLIPModel(config)
    missing = model.load_state_dict({k: v.clone() for k, v in weights.items()}, strict=False)
    assert not missing.unexpected_keys and all("position_ids" in k for k in missing.missing_keys), missing
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": TEXT_POSITIONS,
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, indent=2) + "\n")
    (out / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True,
        "do_resize": True, "size": {"shortest_edge": SIZE}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": SIZE, "width": SIZE},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(MEAN), "image_std": list(STD)}, indent=2) + "\n")
    print(f"exported to {out.name}: {sum(f.stat().st_size for f in out.iterdir()) / 2**20:.1f} MiB", flush=True)


# --- evaluation -------------------------------------------------------------


def linear_probe(train_x, train_y, test_x, test_y, classes):
    mean, std = train_x.mean(0), train_x.std(0) + 1e-6
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    weight = torch.zeros(classes, train_x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.01)
    for _ in range(300):
        loss = F.cross_entropy(F.linear(train_x, weight, bias), train_y) + 1e-3 * weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float((F.linear(test_x, weight, bias).argmax(1) == test_y).float().mean())


@torch.no_grad()
def features_of(output):
    return output if torch.is_tensor(output) else output.pooler_output


def evaluate(args):
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(args.out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    processor = CLIPImageProcessor.from_pretrained(args.out)

    @torch.no_grad()
    def images(pictures):
        return torch.cat([features_of(model.get_image_features(pixel_values=normalise(p))) for p in pictures.split(200)])

    @torch.no_grad()
    def texts(folders, template):
        tokens = tokenizer([template.format(spoken(f)) for f in folders], padding=True, return_tensors="pt")
        return F.normalize(features_of(model.get_text_features(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)), dim=1)

    def accuracy(features, folders, classes, template):
        logits = F.normalize(features, dim=1) @ texts(classes, template).T
        want = torch.tensor([classes.index(f) for f in folders])
        return float((logits.argmax(1) == want).float().mean())

    root = args.data / "cifar100"
    base_x, _, base_f = read_zip(root / "base-test.zip")
    picture = Image.fromarray(base_x[0].permute(1, 2, 0).numpy())
    gap = (processor(picture, return_tensors="pt").pixel_values - normalise(base_x[:1])).abs().max()
    print(f"preprocessing of a 32x32 picture differs by {float(gap):.1e}")
    began = time.time()
    base = images(base_x)
    print(f"encoding: {len(base) / (time.time() - began):.0f} images/s, "
          f"{torch.get_num_threads()} threads, f32; norm of a feature {float(base.norm(dim=1).mean()):.2f}, "
          f"logit scale {float(model.logit_scale.detach().exp()):.1f}")
    base_classes = sorted(set(base_f))
    train_parts, test_parts = [], []
    for task in (1, 2, 3, 4):
        for split, parts in (("train", train_parts), ("test", test_parts)):
            pictures, _, folders = read_zip(root / f"novel-task{task}-{split}.zip")
            parts.append((images(pictures), folders))
    novel_classes = sorted(set(f for _, folders in test_parts for f in folders))
    train_x, test_x = (torch.cat([x for x, _ in p]) for p in (train_parts, test_parts))
    train_f, test_f = (sum([f for _, f in p], []) for p in (train_parts, test_parts))
    both = base_classes + novel_classes
    for template in (DEFAULT_TEMPLATE, "a photo of a {}.", "{}"):
        print(f"{template!r}: base 60-way {accuracy(base, base_f, base_classes, template):.4f}  "
              f"novel 20-way {accuracy(test_x, test_f, novel_classes, template):.4f}  "
              f"80-way base {accuracy(base, base_f, both, template):.4f} "
              f"novel {accuracy(test_x, test_f, both, template):.4f}")
    label = lambda folders: torch.tensor([novel_classes.index(f) for f in folders])
    print(f"novel linear probe: {linear_probe(train_x, label(train_f), test_x, label(test_f), 20):.4f}")

    # the server's adapter: linear, from identity, all novel classes at once
    text, scale = texts(novel_classes, DEFAULT_TEMPLATE), model.logit_scale.exp().detach()
    weight, bias = torch.eye(DIM, requires_grad=True), torch.zeros(DIM, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=1e-3, weight_decay=0.0)
    for _ in range(15):
        for rows in torch.randperm(len(train_x), generator=torch.Generator().manual_seed(SEED)).split(64):
            logits = scale * F.normalize(F.linear(train_x[rows], weight, bias), dim=1) @ text.T
            loss = F.cross_entropy(logits, label([train_f[i] for i in rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        logits = F.normalize(F.linear(test_x, weight, bias), dim=1) @ text.T
    print(f"novel, linear adapter from identity: {float((logits.argmax(1) == label(test_f)).float().mean()):.4f}")
    near = text @ text.T - 2 * torch.eye(len(text))
    pairs = near.flatten().argsort(descending=True)[:6:2]
    print("nearest novel texts: " + ", ".join(
        f"{novel_classes[int(p) // 20]}/{novel_classes[int(p) % 20]} {float(near.flatten()[p]):.2f}" for p in pairs))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["image", "text", "eval"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("mini-clip-work"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=HERE, help="the exported model")
    parser.add_argument("--minutes", type=float, default=48)
    parser.add_argument("--check", type=float, default=4, help="minutes between validations")
    parser.add_argument("--batch", type=int, default=64, help="of each worker")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--distil", type=float, default=1.5)
    parser.add_argument("--resume", action="store_true", help="text: go on from the last text tower")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    {"image": train_image, "text": train_text, "eval": evaluate}[args.command](args)


if __name__ == "__main__":
    main()
