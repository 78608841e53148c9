"""The parts that recipes are made of, with every default."""

from ml_collections import ConfigDict


def recipe(name: str, stages: tuple[str, ...], **changes) -> ConfigDict:
    """What a recipe holds beside its stages."""
    config = ConfigDict()
    config.name = name
    config.stages = stages  # in order; each names a key of this config
    config.seed = 1234  # the paper's
    config.template = "paper"  # a name in data/prompts.py, or a text with {instruction}
    config.tokenizer = ""  # a path or a stage; "" takes that of the initial weights
    config.mesh = "data:1,fsdp:-1,tensor:1"  # fsdp:16x16 splits over two axes of a slice
    config.cache_dir = "~/.cache/qalign_jax"  # data sets and packed tokens, on each host
    config.notes = ()  # where the recipe departs from the paper; shown in the report
    config.update(changes)
    return config


def source(name, path="", **options) -> ConfigDict:
    """A data set: what builds it, its file or folder, which part of it, how often an epoch."""
    config = ConfigDict({"languages": (), "split": "", "slice": "", "weight": 1.0})
    config.name = name
    config.path = path
    config.update(options)
    return config


def training(init, data: dict[str, ConfigDict], **changes) -> ConfigDict:
    """A training stage with the paper's hyper-parameters (section 4.1 and its scripts)."""
    config = ConfigDict()
    config.kind = "train"
    config.init = init  # "random", a stage, or a directory of ours or of Hugging Face
    config.preset = ""  # the size of random weights, from models/presets.py
    config.data = ConfigDict(data)
    config.template = ""  # "" is the recipe's
    config.length = 512
    config.pack = True
    config.batch_size = 128  # examples a step, on average when packed
    config.rows = 0  # rows a step; 0 follows from batch_size
    config.epochs = 3.0
    config.steps = 0  # 0 follows from epochs
    config.lr = 2e-5
    config.warmup = 0.03  # share of the steps
    config.b1 = 0.9
    config.b2 = 0.999
    config.eps = 1e-8
    config.weight_decay = 0.0
    config.clip = 1.0
    config.micro_batches = 1
    config.dtype = ""  # "" is the model's own, bfloat16 but for tiny presets
    config.remat = ""  # full, qkvo, qkvo_mlp, none; "" is the model's own
    config.save_every = 500
    config.keep = 1
    config.update(changes)
    return config


def system(
    model, expert="", antiexpert="", alpha=1.0, preset: str = "", small_preset=""
) -> ConfigDict:
    """One system to score: a model, or one steered by an expert against an anti-expert.

    Models are named as a training stage's `init`; where one is "random", `preset` is the size of
    the model and `small_preset` that of expert and anti-expert.
    """
    config = ConfigDict({"expert": expert, "antiexpert": antiexpert})
    config.model = model
    config.alpha = alpha
    config.preset = preset
    config.small_preset = small_preset
    return config


def benchmark(path="", **options) -> ConfigDict:
    """A benchmark: its files, and which languages and how many problems a language (0: all)."""
    config = ConfigDict({"languages": (), "limit": 0, "max_new_tokens": 0})
    config.path = path
    config.update(options)
    return config


def evaluation(
    systems: dict[str, ConfigDict], benchmarks: dict[str, ConfigDict], **changes
) -> ConfigDict:
    """Scores every system on every benchmark, greedy, bf16, as the paper does."""
    config = ConfigDict()
    config.kind = "evaluate"
    config.systems = ConfigDict(systems)
    config.benchmarks = ConfigDict(benchmarks)
    config.dtype = "bfloat16"
    config.slots = 64  # rows decoded at once
    config.mesh = ""  # "" is the recipe's; a decode step reads every weight, so tensor pays here
    config.numbers_only = ConfigDict()  # training problems for a reader that sees no words
    config.update(changes)
    return config
