"""The config.json of released models, key by key, and how the hub cuts their weights into files."""

import json
from importlib.resources import files

# Files of weights: their number, or a file's name for each layer. They are the hub's for LLaDA,
# Dream, Fast-dLLM v2 7B and SDAR's 30B; else as transformers cuts (5 GB). Of Fast-dLLM v2 1.5B the
# shape is its parent's, Qwen2.5-1.5B. LLaDA2.0 and its CAP have the shape of LLaDA2.1.
_FILES = {
    "llada-8b-instruct": 6,
    "dream-7b-instruct": 4,
    "sdar-1.7b-chat": 1,
    "sdar-4b-chat": 2,
    "sdar-8b-chat": 4,
    "trado-4b-instruct": 2,
    "trado-8b-instruct": 4,
    "fast-dllm-v2-7b": 4,
    "fast-dllm-v2-1.5b": 1,
    "llada-moe-7b-a1b": 3,
    "llada2-mini": 7,
    "llada2-flash": 42,
    "sdar-30b-a3b": "layer-{}-ep-0-of-1.safetensors",
}
_FOLDER = files("leapjax") / "data" / "model-configs"
MODELS = {
    name: (json.loads((_FOLDER / f"{name}.json").read_text("utf-8")), count)
    for name, count in _FILES.items()
}
"""Name -> (config.json, number of files or a file's name per layer)."""
