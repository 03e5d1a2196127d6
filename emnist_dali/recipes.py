"""The recipes: named configs, each a function of the split."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .config import RENAMED_RECIPES, Affine, Config, Data, Mixing, Model, Run, Training, flattened, from_dict, missing
from .core.documents import is_document, read_document
from .core.errors import FileError, UserError

# Radians; ±2 of 28 pixels.
WARPS = Affine(rotation=(0.2,), scale=0.12, shear=0.15, translation=2 / 28)
SMALL_WARPS = Affine(rotation=(0.1,), scale=0.06, shear=0.075, translation=1 / 28)  # for 5 epochs or fewer
LARGE_WARPS = Affine(rotation=(0.25,), scale=0.15, shear=0.2, translation=0.09)  # for 16 or more; ±2.5 pixels


def published(split: str) -> Config:
    """The published recipe that this project starts from, as published.

    Reported: 90.66 % on Balanced, 88.42 % on ByClass, on the official splits. Where the publication is silent, this
    project chose: warm-up starts at a fifth of the peak rate, and norms and biases have no weight decay.
    """
    byclass = split == "byclass"
    return Config(
        recipe="published",
        data=Data(
            split=split,
            image_size=112,
            batch_size=512,
            affine=Affine(rotation=(0.17453, 0.03491), translation=0.1, flip=0.1),  # ±10° and ±2°
        ),
        model=Model(model="efficientnet_b3" if byclass else "efficientnet_b2", stem="new"),
        training=Training(
            epochs=15 if byclass else 20,
            accumulation=2,
            optimizer="lion",
            lr=3e-4 if byclass else 2e-4,
            weight_decay=0.01,
            schedule="restarts",
            warmup=5,
            restart_every=8,
            min_lr=1e-6,
            clip=1.0,
            label_smoothing=0.1,
            class_weights=byclass,
            mixing=Mixing(mixup_alpha=0.22, cutmix_alpha=0.62, probability=0.8, switch=0.5),
        ),
    )


def improved(split: str) -> Config:
    """What beats `published` with the same net, image size, epochs and batch size.

    From random weights 89.88 % of RESULTS.md's Balanced test where `published` has 89.04 (one seed each); pretrained
    ones were not run. On a small net class weights and no mixing were better, and averaged weights and warps made no
    difference in 5 epochs; the other changes were not compared one by one.
    """
    base = published(split)
    return replace(
        base,
        recipe="improved",
        data=replace(base.data, affine=WARPS),  # no flips: glyphs are chiral
        model=replace(base.model, stem="folded"),  # keeps the pretrained stem
        training=replace(
            base.training,
            schedule="cosine",  # one cycle, to zero; `published` ends at 0.15 (Balanced) or 0.96 of its peak rate
            warmup=1,  # epochs
            weight_decay=0.1,  # Lion's paper advises 3 to 10 times AdamW's (arXiv:2302.06675)
            min_lr=0.0,
            ema=0.999,  # per step of 1,024 images; 89 an epoch of RESULTS.md's Balanced, 104 of the official
            class_weights=split == "balanced",  # its test split is balanced; RESULTS.md's training images are not
            mixing=None,
        ),
    )


def fast(split: str) -> Config:
    """The shortest way to a good accuracy on a GPU: a small net of dense convolutions, with Muon.

    RESULTS.md's Balanced test: 90.28 % (sd 0.05, 10 seeds) in 0.9 s on an H100. bench/speedrun/README.md has what was
    tried, there and on a CPU.
    """
    return Config(
        recipe="fast",
        data=Data(
            split=split,
            image_size=24,  # resized from 28×28 in the warp
            batch_size=1024,
            affine=SMALL_WARPS,
        ),
        model=Model(model="emnist_fast", pretrained=False),
        training=Training(
            epochs=5,
            optimizer="muon",
            lr=0.04,  # twice what 256 images a step take
            momentum=0.85,  # with `fast_cpu`, 0.95 has 0.22 ± 0.32 points less (3 seeds)
            weight_decay=0.05,
            schedule="cosine",
            warmup=0.5,  # epochs: 47 steps
            clip=1.0,
            label_smoothing=0.2,
            # Only where training images are imbalanced (the official ones are not) and test images are not.
            logit_adjustment=1.0 if split == "balanced" else 0.0,
            ema=0.99,
        ),
        # 196 kernels of a few µs each: one call starts them all, and there is no compiler to wait for.
        run=Run(compile="graph"),
    )


def gpu(split: str) -> Config:
    """Three of `fast`'s nets as one, each trained for 16 epochs.

    RESULTS.md's Balanced test: 90.62 % (sd 0.04, 10 seeds) in 7.4 s on an H100.
    """
    return replace(fast(split), recipe="gpu").override(
        {
            "model": "emnist_fast_large_trio",
            "batch_size": 3072,  # 1,024 a net
            "epochs": 48,  # a third of the images a net in each
            "momentum": 0.95,
            "affine": LARGE_WARPS,
        }
    )


def fast_cpu(split: str) -> Config:
    """`fast` at its CPU size: half a minute on 2 cores."""
    return fast(split).override(
        {
            "model": "emnist_fast_tiny",
            "compile": "off",
            "batch_size": 640,  # 512 at 0.03 is as good and takes 5 % longer
            "epochs": 4,
            "lr": 0.0375,
            "warmup": 0.2,
            "label_smoothing": 0.1,
            # 1.5 times fp32's images/s on a Zen 5 core; 0.1 to 0.4 times on a CPU without bf16 instructions.
            "amp": "native",
        }
    )


def cpu(split: str) -> Config:
    """A wider net than `fast`'s for minutes on 2 cores, with warps as large as on a GPU."""
    return replace(fast_cpu(split), recipe="cpu").override(
        {
            "model": "emnist_fast_wide",
            "batch_size": 512,
            "epochs": 18,  # RESULTS.md's Balanced test: 90.43 % (sd 0.03, 3 seeds) in 245 s
            "lr": 0.03,
            "momentum": 0.95,  # as in Muon's own implementation; others were not compared in so many epochs
            "affine": LARGE_WARPS,
        }
    )


def cpu_long(split: str) -> Config:
    """Three of `cpu`'s nets as one, each trained as long as `cpu`: a quarter of an hour on 2 cores.

    Chosen after the mean of three runs of `cpu` had been read on the test (RESULTS.md), not on images held out.
    """
    return replace(cpu(split), recipe="cpu_long").override(
        {
            "model": "emnist_fast_trio",
            "batch_size": 1344,  # 448 a net; of more than 1,393 images a step on a CPU is in micro-batches
            "epochs": 54,  # a third of the images a net in each
        }
    )


RECIPES: dict[str, Callable[[str], Config]] = {
    "published": published,
    "improved": improved,
    "fast": fast,
    "gpu": gpu,
    "cpu": cpu,
    "cpu_long": cpu_long,
}


def recipe(name: str, split: str = "balanced") -> Config:
    """The config of a recipe for `split`; `fast` is at its GPU size. Raises UserError for an unknown name.

    >>> from emnist_dali import recipe
    >>> config = recipe("cpu", "letters")
    >>> config.data.split, config.model.model, config.training.epochs
    ('letters', 'emnist_fast_wide', 18)
    """
    if name not in RECIPES:
        raise UserError(unknown_recipe(name))
    return RECIPES[name](split)


def unknown_recipe(name: str) -> str:
    """A sentence on a name that is not a recipe's, which may have been one."""
    if name in RENAMED_RECIPES:
        return f"The recipe {name} is now called {RENAMED_RECIPES[name]}."
    return f"There is no recipe {name!a:.80}; choose {', '.join(RECIPES)}."


def choose(name: str, split: str | None, gpu: bool) -> tuple[Config, str]:
    """The named recipe, the one in a JSON, TOML or YAML file, or for `auto` the best for the machine; and why.

    A `split` of None is Balanced, or the file's own. Raises UserError for an unknown name or an invalid file.
    """
    if is_document(name):
        config = _read(Path(name), split, gpu)
        return config, f"Recipe {config.recipe} from {name}, as requested."
    split = "balanced" if split is None else split
    if name == "auto" and gpu:
        return recipe("gpu", split), "Recipe gpu: the most accurate one that has been run on a GPU."
    if name == "auto":
        return cpu(split), "Recipe cpu: no GPU is used."
    if name == "fast" and not gpu:
        return fast_cpu(split), "Recipe fast, as requested, at its size for a CPU."
    size = ", at its size for a GPU" if name == "fast" else ""
    return recipe(name, split), f"Recipe {name}, as requested{size}."


def _read(path: Path, split: str | None, gpu: bool) -> Config:
    """A whole config, or changes of the recipe that the file names as its `base`."""
    content = read_document(path)
    content.pop("sha256", None)  # of the files that this project writes
    if "base" not in content:
        try:
            config = from_dict({"recipe": "custom", **content}, str(path))
        except UserError as error:
            raise FileError(str(error)) from error
        if lacking := missing(content):
            raise FileError(
                f"{path} has no {lacking[0]}, and no base to take it from; add a base: {', '.join(RECIPES)} or auto."
            )
        if config.run.out is not None:  # another run's
            config = replace(config, run=replace(config.run, out=None, wandb_group=None))
        return config.override({"split": split})
    base, name = content.pop("base"), content.pop("recipe", None)
    try:
        if not isinstance(base, str):
            raise UserError(f"base is {base!a:.80}, and must be the name of a recipe")
        if base not in ("auto", *RECIPES):
            raise UserError(unknown_recipe(base))
        changes = flattened(content, ("base", "recipe"))
        on_gpu = gpu and not str(changes.get("run.device", "")).startswith("cpu")
        config, _ = choose(base, split or changes.get("data.split"), on_gpu)
        config = replace(config, recipe=name) if name is not None else config
        return config.override({**changes, "split": split})
    except (UserError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise FileError(f"{path} is not a valid config ({str(error).rstrip('.')[:200]}).") from error
