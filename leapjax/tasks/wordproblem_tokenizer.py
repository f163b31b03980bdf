"""The word problems' tokenizer: whole words, whole numbers to 99, bytes for the rest.

    text -> isolate words, numbers, signs (each with its leading space) -> Unigram pieces

A number of up to two digits is one token; a longer one is a digit for each leading place
and one token for the last two (`237` is ` 2`, `37`). Words that the generator does not use
fall apart into letters, anything else into bytes, so every text can be encoded and
`decode(encode(text)) == text`.
"""

import string
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from leapjax.model_files import to_json

EOS, MASK, BOS = "<|endoftext|>", "<|mdm_mask|>", "<|startoftext|>"
USER, ASSISTANT, SYSTEM = "<|user|>", "<|assistant|>", "<|system|>"
SPECIALS = (EOS, MASK, BOS, USER, ASSISTANT, SYSTEM)

# An assistant's turn ends in the eos token, which is also what fills the canvas behind it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_PIECES = r" ?[A-Za-z]+| ?\d{1,2}(?!\d)| ?\d|####| ?[^\sA-Za-z\d]|\s"


# The vocabulary is frozen: rewording a problem must not move the ids of a trained model.
WORDS = (
    "Tom Anna Ben Mia Sam Lily Max Emma Leo Nora Jack Ella Finn Rosa Adam Lucy Omar Ivy Paul "
    "Zoe Hugo Clara Noah Ruth Eric Maya Alan Dora Karl Vera marbles shells stickers coins "
    "cards stamps buttons stones has How many does have now finds more which makes gives With "
    "the gift loses leaves After giving some trade it times as The that cookies muffins rolls "
    "pies cakes tarts bakes are there in end Baking brings so eats oven burns Without burnt "
    "ones Then Making people children guests girls boys players bus on board At school get "
    "park off market station flowers roses tulips bushes trees beans garden plants new grow "
    "make cuts storm takes year later books maps games films magazines library It buys "
    "returns Once lends to and keeps sells dollars euros pounds saved earns Earning An aunt "
    "sends money spends book with pays Paying prize much eggs apples pears melons plums "
    "pumpkins picks farm do they shed holds go bad They sell boxes crates barrels bags "
    "parcels truck carries carry loads When dock adds making drops at shop mill such trips "
    "Over each buy hold Together single left than together fewer but then First tickets pens "
    "cups hats toys for cost That pages songs letters poems reads Monday Tuesday Friday is "
    "all On There teams join home fills shelves Of rest others years old miles town table "
    "chairs cats dogs lamps kites drums birds"
).split()


def build() -> Tokenizer:
    """Make the tokenizer; the same ids every time."""
    singles = [c for c in string.ascii_letters + string.punctuation]
    numbers = [str(i) for i in range(100)]
    pieces = ["####", "\n", " ", *(f" {n}" for n in numbers)]
    pieces += [*numbers, *(f"0{i}" for i in range(10))]
    pieces += [*singles, *(f" {c}" for c in singles)]
    pieces += [f" {w}" for w in WORDS] + WORDS
    return assemble(pieces, _PIECES)


def assemble(pieces: Sequence[str], split: str) -> Tokenizer:
    """A tokenizer of whole pieces, with bytes for the rest.

    `pieces` are the vocabulary behind `SPECIALS` and the bytes. `split` is a regular expression; a
    text is cut into its matches, which no piece crosses.
    """
    # A whole piece always beats its parts: one piece costs 1, a letter as much, a byte more.
    vocab = [(t, 0.0) for t in SPECIALS]
    vocab += [(f"<0x{i:02X}>", -50.0) for i in range(256)]
    vocab += [(p, -1.0) for p in dict.fromkeys(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(split), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return tokenizer


def save(folder, tokenizer: Tokenizer | None = None) -> list[Path]:
    """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`.

    Without `tokenizer` it is the word problems'. Returns the files' paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or build()
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "mask_token": MASK}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(t)): {
                "content": t,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for t in SPECIALS
        },
    }
    paths = [
        folder / n for n in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    ]
    tokenizer.save(str(paths[0]))
    paths[1].write_bytes(to_json(config))
    paths[2].write_bytes(to_json(names))
    return paths
