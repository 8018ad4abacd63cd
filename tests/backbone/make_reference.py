"""Makes what the backbone's tests compare against, with `transformers` as the reference.

    python make_reference.py pinned CLIP_TOKENIZER   # writes data/ beside this file; its output is committed
    python make_reference.py large CLIP_TOKENIZER DIR  # writes real-sized models to DIR, for CLIPKEEP_REFERENCE

CLIP_TOKENIZER is the path of CLIP's own tokenizer.json. Everything is seeded; made with torch 2.15, torchvision 0.29,
transformers 5.23, tokenizers 0.23 and Pillow 13.
"""

import io
import json
import random
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

HERE = Path(__file__).parent
BATCH = 7


# --- towers -----------------------------------------------------------------------------------------------------------


def randomise(model, seed):
    """Fresh weights of which none is zero or one, so that a forgotten bias or norm shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "logit_scale":
                parameter.fill_(2.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif "embedding" in name and "patch" not in name:
                parameter.copy_(0.5 * noise)
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * fan_in**-0.5)


def write_model(directory, config, tokenizer, texts, seed, dtype=torch.float32, shard="5GB"):
    """A model as save_pretrained leaves it, and what the reference makes of 7 images and 7 texts."""
    model = CLIPModel(config)
    randomise(model, seed)
    shutil.rmtree(directory, ignore_errors=True)
    model.to(dtype).save_pretrained(directory, max_shard_size=shard)
    tokenizer.save_pretrained(directory)
    size = config.vision_config.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    processor.save_pretrained(directory)
    for path in directory.iterdir():
        path.chmod(0o644)

    # The stored weights, not the ones they were rounded from.
    model = CLIPModel.from_pretrained(directory, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    pixels = torch.randint(0, 256, (BATCH, 3, size, size), generator=generator, dtype=torch.uint8)
    of_channels = [torch.tensor(values).reshape(3, 1, 1) for values in (processor.image_mean, processor.image_std)]
    normalised = (pixels * processor.rescale_factor - of_channels[0]) / of_channels[1]
    length = config.text_config.max_position_embeddings
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.inference_mode():
        images = model.get_image_features(pixel_values=normalised)
        text = model.get_text_features(**tokens)
    images, text = (getattr(x, "pooler_output", x) for x in (images, text))
    save_file(
        {
            "pixels": pixels.numpy(),
            "image_features": images.numpy(),
            "ids": tokens["input_ids"].numpy().astype(np.uint32),
            "lengths": tokens["attention_mask"].sum(1).numpy().astype(np.uint32),
            "text_features": text.numpy(),
        },
        directory / "reference.safetensors",
    )


def tiny_tokenizer():
    """A byte-level tokenizer in CLIP's form: 256 bytes, the same as word ends, a few merges, start and end."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    symbols = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(len(hidden))]
    merges = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"), ("o", "f</w>"), ("p", "h"), ("ph", "o")]
    words = symbols + [symbol + "</w>" for symbol in symbols] + ["".join(merge) for merge in merges]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def write_tiny_models(directory):
    tokenizer = tiny_tokenizer()
    vocabulary = len(tokenizer)
    end = vocabulary - 1
    texts = ["a photo of the cat", "", "dog", "the cat of the cat", "Café", "猫", "a text longer than the context"]

    def config(activation, vision, text):
        return CLIPConfig(
            projection_dim=20,
            vision_config={"hidden_act": activation, **vision},
            text_config={"hidden_act": activation, "vocab_size": vocabulary, **text},
        )

    # eos_token_id 2 is what checkpoints from before 2023 say; the largest id is pooled then.
    quick = config(
        "quick_gelu",
        dict(hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, image_size=24, patch_size=6),
        dict(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3,
             max_position_embeddings=16, eos_token_id=2, layer_norm_eps=1e-3),
    )
    write_model(directory / "quick-gelu", quick, tokenizer, texts, 1)
    # The image is no multiple of the patch; stored as bfloat16 in shards.
    plain = config(
        "gelu",
        dict(hidden_size=24, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=22, patch_size=4,
             layer_norm_eps=1e-3),
        dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             max_position_embeddings=12, eos_token_id=end, bos_token_id=end - 1),
    )
    write_model(directory / "gelu", plain, tokenizer, texts, 2, torch.bfloat16, "50KB")
    half = config(
        "quick_gelu",
        dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=8),
        dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
             max_position_embeddings=16, eos_token_id=end, bos_token_id=end - 1),
    )
    write_model(directory / "half", half, tokenizer, texts, 3, torch.float16)


def write_large_models(directory, tokenizer_file):
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_directory(tokenizer_file, directory))
    texts = ["a photo of a cat", "", "a", "two dogs, running on the beach at sunset", "Café 🐈", "一只猫", "word " * 100]

    def config(dim, vision, text, **common):
        return CLIPConfig(projection_dim=dim, vision_config=vision | common, text_config=text | common)

    base = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=224)
    large = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224)
    wide = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    models = {
        "vit-b-32": config(512, base | {"patch_size": 32}, {}),
        "vit-b-32-gelu": config(512, base | {"patch_size": 32}, {}, hidden_act="gelu"),
        "vit-b-16": config(512, base | {"patch_size": 16}, {}),
        "vit-l-14": config(768, large | {"patch_size": 14}, wide),
    }
    for seed, (name, config) in enumerate(models.items()):
        write_model(directory / name, config, tokenizer, texts, 10 + seed)
        print(name)


def tokenizer_directory(tokenizer_file, directory):
    """transformers loads from directories only."""
    directory = directory / "tokenizer"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_bytes(Path(tokenizer_file).read_bytes())
    return directory


# --- tokenizer --------------------------------------------------------------------------------------------------------


def prompts():
    """Prompts of our own: templates, scripts, entities, contractions, and seeded noise."""
    rng = random.Random(7)
    things = (
        "cat dog tabby Border collie red panda school bus espresso machine violin acoustic-guitar Golden_Retriever "
        "jack-o'-lantern T-shirt café jalapeño Schnauzer crème brûlée piñata smörgåsbord naïve façade Ångström "
        "ice cream 4x4 B-52 iPhone15 e-mail C++ O'Reilly's rock'n'roll 747 3.14 1,000,000 №5 ½cup H₂O x²"
    ).split()
    templates = (
        "a photo of a {}.|a photo of the large {}.|a bad photo of a {}.|itap of my {}|a {} in a video game.|"
        "A PHOTO OF ONE {}!|art of the {}; plushie|{}|the {}'s owner|they're {} and we'll've {}|«{}» — “{}”…"
    ).split("|")
    out = [template.replace("{}", thing) for template in templates for thing in things]
    scripts = (
        "一只猫|猫がソファで寝ています|고양이 사진|Фотография кошки|صورة قطة|תמונה של חתול|बिल्ली की तस्वीर|รูปถ่ายแมว|φωτογραφία γάτας|"
        "Ảnh một con mèo|İstanbul'da bir kedi|straße STRASSE ẞ|ﬁne ﬂuﬀy|Ǆ ǅ ǆ|ȺȾ|ＦＵＬＬ　ｗｉｄｔｈ|中文 mixed with English 123|日本語とEnglish"
    ).split("|")
    emoji = "🐈|🐈‍⬛|👩‍👩‍👧‍👦 family|👍🏽 ok|🇨🇭🇯🇵|a 🐶 and a 🐱|❤️‍🔥|☃|😀😃😄😁|#️⃣".split("|")
    entities = (
        "cats &amp; dogs|&lt;b&gt;bold&lt;/b&gt;|caf&eacute;|&#128008; cat|&quot;quoted&quot;|5 &times; 5|a&nbsp;b|&amp;amp;|&notanentity;|"
        "<p>html</p>|<|startoftext|>|a <|endoftext|> b|<|endoftext|>|< | endoftext | >|[CLS] [SEP]|</w>|the</w>"
    )
    entities = entities.replace("<|startoftext|>", "\0").replace("<|endoftext|>", "\1").split("|")
    entities = [e.replace("\0", "<|startoftext|>").replace("\1", "<|endoftext|>") for e in entities]
    spaces = [
        "", " ", "   ", "\t", "\n", " a  b\tc\nd\r\ne ", "\u00a0a\u00a0b", "a\u2003b\u3000c", "zero\u200bwidth", "a\u200db", "\ufeffbom",
        "\u0000nul", "bell\u0007", "a\u0301", "e\u0301le\u0300ve", "n\u0303", "\u1100\u1161\u11a8", "\u212b", "o\u0308\u0304", "\u0130", "\u00df",
        "I'M WE'LL YOU'D IT'S", "'s't're've'm'll'd", "''''", "can’t won’t", "a.b,c;d:e!f?g", "!!!???...", "----", "____",
        "0123456789", "٣٤٥", "１２３", "Ⅷ ⅷ", "1st 2nd 3rd", "\u0916\u094d\u092f", "\U0001d49c\U0001d4b7", "\U00020000",
    ]
    long = [
        "word " * 100, "a" * 300, "猫" * 90, "🐈" * 40, "1" * 120, "! " * 80, "word " * 74 + "end", "word " * 75 + "end", "word " * 76,
        " ".join(things), "supercalifragilisticexpialidocious " * 12, "&amp; " * 60,
    ]
    out += [*scripts, *emoji, *entities, *spaces, *long]
    for _ in range(60):
        text = " ".join(rng.choices([*things, *scripts, *emoji, *entities], k=rng.randint(2, 30)))
        out.append(text.upper() if rng.random() < 0.2 else text)
    alphabets = [(32, 127), (160, 592), (768, 880), (880, 1424), (1424, 2432), (8192, 9984), (12288, 12544), (19968, 40870), (127744, 129792)]
    for _ in range(400):
        low, high = rng.choice(alphabets)
        mix = [chr(rng.randrange(low, high)) if rng.random() < 0.8 else rng.choice(" aB'1-") for _ in range(rng.randint(1, 24))]
        out.append("".join(mix))
    return list(dict.fromkeys(out))


def write_tokens(directory, tokenizer_file, scratch):
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_directory(tokenizer_file, scratch))
    texts = prompts()
    ids = tokenizer(texts, truncation=True, max_length=77)["input_ids"]
    assert len(texts) >= 1000 and sum(len(row) == 77 for row in ids) >= 10
    rows = ",\n".join(json.dumps([text, row], separators=(",", ":")) for text, row in zip(texts, ids))
    (directory / "tokens.json").write_text(f"[\n{rows}\n]\n")
    print(len(texts), "prompts")


# --- images -----------------------------------------------------------------------------------------------------------


def waves(width, height, channels=3, phase=0.0, amplitude=120):
    """A smooth picture."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    u, v = x / max(width, 2), y / max(height, 2)
    planes = [
        127.5 + amplitude * np.sin(2 * np.pi * (u * (1 + 0.4 * c) + v * (0.8 - 0.3 * c)) + 1.3 * c + phase) for c in range(channels)
    ]
    return np.stack(planes, -1).round().astype(np.uint8)


def gentle(width, height, channels=3):
    """Smoother still: decoders of lossy WebP may differ, and do, by a few steps where colors change fast."""
    return waves(width, height, channels, amplitude=60)


def texture(width, height, channels=3):
    """Hard edges and fine lines: what shows a wrong filter. Repeats, so that PNG keeps it small."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [((x // (3 + c) + y // (5 - c)) % 2 * 170 + (x * (c + 1) + 2 * y) % 8 * 10) for c in range(channels)]
    return np.stack(planes, -1).astype(np.uint8)


def png(array, depth, color, palette=b"", transparency=b"", interlace=0):
    """A PNG of any bit depth, which Pillow cannot write. `array` is (height, width, samples)."""
    height, width, _ = array.shape
    if depth == 16:
        lines = array.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        bits = np.unpackbits(array.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :].reshape(height, -1)
        lines = np.packbits(bits, axis=1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))]
    chunks += [(b"PLTE", palette)] * bool(palette) + [(b"tRNS", transparency)] * bool(transparency)
    chunks += [(b"IDAT", zlib.compress(raw, 9)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def saved(array, kind, mode=None, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    if mode:
        image = image.convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def pictures():
    wide, tall, small = gentle(150, 100), gentle(90, 160), gentle(60, 40)
    alpha = np.dstack([waves(70, 90), waves(70, 90, 1, 0.5)])
    grey_alpha = np.dstack([waves(80, 60, 1), waves(80, 60, 1, 0.5)])
    deep = (waves(66, 54, 3).astype(np.uint16) << 8) | waves(66, 54, 3, 1.0)
    deep_alpha = np.dstack([deep, (waves(66, 54, 1, 2.0).astype(np.uint16) << 8) | 77])
    palette = Image.fromarray(wide).quantize(32)
    clear = Image.fromarray(waves(64, 80)).quantize(16)
    indices = (np.indices((40, 52)).sum(0) // 6 % 4)[..., None]
    colors = bytes([200, 30, 40, 10, 220, 60, 20, 40, 230, 250, 240, 10])
    frames = [Image.fromarray(waves(60, 70, 3, phase)) for phase in (0.0, 2.0)]
    cmyk = Image.fromarray(gentle(120, 90, 4), "CMYK")
    out = {
        "downscale-landscape.png": saved(texture(301, 200), "PNG"),
        "downscale-portrait.png": saved(texture(143, 260), "PNG"),
        "upscale-landscape.png": saved(texture(31, 20), "PNG"),
        "upscale-portrait.png": saved(texture(17, 29), "PNG"),
        "exact.png": saved(texture(32, 32), "PNG"),
        "square-odd.png": saved(texture(77, 77), "PNG"),
        "wide-strip.png": saved(texture(400, 3), "PNG"),
        "tall-strip.png": saved(texture(2, 500), "PNG"),
        "one-pixel.png": saved(texture(1, 1), "PNG"),
        "grey.png": saved(texture(90, 70, 1)[..., 0], "PNG"),
        "bilevel.png": saved(texture(90, 70, 1)[..., 0], "PNG", mode="1"),
        "grey-2-bit.png": png(indices, 2, 0),
        "grey-4-bit.png": png((np.indices((33, 57)).sum(0) % 16)[..., None], 4, 0),
        "grey-alpha.png": saved(Image.fromarray(grey_alpha, "LA"), "PNG"),
        "alpha.png": saved(Image.fromarray(alpha, "RGBA"), "PNG"),
        "color-key.png": png(np.repeat(indices * 80, 3, -1), 8, 2, transparency=struct.pack(">HHH", 80, 80, 80)),
        "grey-key.png": png(indices * 80, 8, 0, transparency=struct.pack(">H", 80)),
        "palette.png": saved(palette, "PNG"),
        "palette-2-bit.png": png(indices, 2, 3, palette=colors),
        "palette-alpha.png": png(indices, 2, 3, palette=colors, transparency=bytes([0, 90, 200])),
        "grey-16-bit.png": png(deep[..., :1], 16, 0),
        "rgb-16-bit.png": png(deep, 16, 2),
        "rgba-16-bit.png": png(deep_alpha, 16, 6),
        "grey-alpha-16-bit.png": png(deep_alpha[..., 2:], 16, 4),
        "exif-6.png": saved(texture(70, 50), "PNG", exif=exif(6)),
        "photo.jpg": saved(wide, "JPEG", quality=95),
        "photo-444.jpg": saved(tall, "JPEG", quality=95, subsampling=0),
        "small.jpg": saved(small, "JPEG", quality=95),
        "progressive.jpg": saved(wide, "JPEG", quality=95, progressive=True),
        "grey.jpg": saved(tall, "JPEG", mode="L", quality=95),
        "cmyk.jpg": saved(cmyk, "JPEG", quality=95),
        "large.jpg": saved(waves(800, 608), "JPEG", quality=85),
        "large-444.jpg": saved(texture(272, 400), "JPEG", quality=85, subsampling=0),
        "large-progressive.jpg": saved(texture(160, 144), "JPEG", quality=85, progressive=True),
        "large-grey.jpg": saved(waves(408, 288), "JPEG", mode="L", quality=85),
        "photo.webp": saved(wide, "WEBP", quality=95),
        "lossless.webp": saved(texture(81, 59), "WEBP", lossless=True),
        "alpha.webp": saved(Image.fromarray(alpha, "RGBA"), "WEBP", lossless=True, exact=True),
        "exif-8.webp": saved(texture(70, 50), "WEBP", lossless=True, exif=exif(8)),
        "animated.webp": saved(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:]),
        "palette.gif": saved(palette, "GIF"),
        "clear.gif": saved(clear, "GIF", transparency=3),
        "animated.gif": saved(frames[0].quantize(32), "GIF", save_all=True, append_images=[frames[1].quantize(32)]),
        "color.bmp": saved(texture(50, 37), "BMP"),
        "palette.bmp": saved(palette.resize((40, 30)), "BMP"),
        "color.tiff": saved(texture(50, 37), "TIFF", compression="tiff_lzw"),
        "grey-16-bit.tiff": saved(Image.fromarray(deep[..., 0]), "TIFF", compression="tiff_adobe_deflate"),
        "exif-3.tiff": saved(texture(50, 37), "TIFF", compression="tiff_lzw", tiffinfo={0x0112: 3}),
    }
    for orientation in range(1, 9):
        out[f"exif-{orientation}.jpg"] = saved(gentle(100, 60), "JPEG", quality=95, subsampling=0, exif=exif(orientation))
    return out


def processors():
    """Name and `preprocessor_config.json`; the first sees every picture, the others a few."""
    square = {"height": 32, "width": 32}
    clip = {"size": {"shortest_edge": 32}, "crop_size": square, "resample": 3}
    return {
        "clip": clip,
        "bilinear": clip | {"resample": 2},
        "lanczos": clip | {"resample": 1},
        "pillow-nearest": clip | {"resample": 0},
        "pillow-lanczos": clip | {"resample": 1},
        "pillow-bilinear": clip | {"resample": 2},
        "pillow-bicubic": clip | {"resample": 3},
        "pillow-box": clip | {"resample": 4},
        "pillow-hamming": clip | {"resample": 5},
        "old-integers": {"size": 32, "crop_size": 32, "resample": 3},
        "wider-than-crop": clip | {"size": {"shortest_edge": 45}},
        "padded": clip | {"size": {"shortest_edge": 19}},
        "exact": clip | {"size": {"height": 19, "width": 41}},
        "uncropped": {"size": square, "do_center_crop": False, "resample": 3},
        "unresized": clip | {"do_resize": False},
        "plain-numbers": clip | {"do_normalize": False},
        "half-range": clip | {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "rescale_factor": 1 / 127.5},
        "not-rescaled": clip | {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 70, 80]},
    }


FEW = ["downscale-landscape.png", "downscale-portrait.png", "upscale-landscape.png", "upscale-portrait.png", "exact.png", "square-odd.png"]


def is_seen(name, picture):
    """Whether a processor is compared on a picture."""
    if picture.startswith("large"):
        return name == "pillow-bicubic"
    # Inks become colors in more than one way.
    is_few = picture in FEW or (name == "pillow-bicubic" and picture.endswith(".jpg") and picture != "cmyk.jpg")
    return name == "clip" or is_few


def drafted(image, shortest):
    """Decodes a JPEG smaller, as long as that leaves twice the target; of other formats and small ones this does nothing."""
    target = [2 * shortest * side // min(image.size) for side in image.size]
    image.draft(None, target)
    return image


def write_images(directory):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    encoded = pictures()
    for name, data in encoded.items():
        (directory / name).write_bytes(data)
    expected = {}
    for name, config in processors().items():
        # Names that say so were resized by Pillow itself, and must be equal; torchvision's kernels are within 1 of it.
        processor = (CLIPImageProcessorPil if name.startswith("pillow-") else CLIPImageProcessor)(**config)
        for picture, data in encoded.items():
            if not is_seen(name, picture):
                continue
            image = Image.open(io.BytesIO(data))
            if name.startswith("pillow-"):
                image = drafted(image, processor.size["shortest_edge"])
            image = ImageOps.exif_transpose(image)
            pixels = processor(image, return_tensors="np")["pixel_values"][0].astype(np.float64)
            # Back to bytes: the test compares in units of 1/255.
            mean, std = (np.array(x).reshape(3, 1, 1) for x in (processor.image_mean, processor.image_std))
            if processor.do_normalize:
                pixels = pixels * std + mean
            if processor.do_rescale:
                pixels = pixels / processor.rescale_factor
            assert np.abs(pixels - pixels.round()).max() < 1e-2, (name, picture)
            expected[f"{name}/{picture}"] = pixels.round().astype(np.uint8)
    save_file(expected, directory / "expected.safetensors")
    (directory / "processors.json").write_text(json.dumps(processors(), indent=1) + "\n")
    print(len(encoded), "pictures,", sum(p.stat().st_size for p in directory.iterdir()), "bytes")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["pinned", tokenizer_file]:
            import tempfile

            data = HERE / "data"
            data.mkdir(exist_ok=True)
            write_tiny_models(data)
            with tempfile.TemporaryDirectory() as scratch:
                write_tokens(data, tokenizer_file, Path(scratch))
            write_images(data / "images")
        case ["large", tokenizer_file, directory]:
            write_large_models(Path(directory), tokenizer_file)
        case _:
            sys.exit(__doc__)
