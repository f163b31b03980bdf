"""The tokenizer of the tasks with dependency: a letter, a digit, a word of the wordings is a token.

JSON's quotes come in three tokens (`{"`, `":`, `,"`), so a pair `,"apple":37` has five. Any other
text falls apart into letters and bytes.
"""

import string

from tokenizers import Tokenizer

from leapjax.tasks.dependency_kinds import KEYS
from leapjax.tasks.wordproblem_tokenizer import assemble

_PIECES = r"\{\"|\":|,\"| ?[A-Z]?[a-z]+| ?[A-Z]| ?\d| ?[^\sA-Za-z\d]|\s"

# The vocabulary is frozen: rewording a template must not move the ids of a trained model.
WORDS = (
    "Copy the letters Write these again this line Give same in order Here is a it Line Task copy "
    "Read then write Reverse from last to first reverse end start Sort Put all of them sorted sort "
    "Replace letter by second with replaced as rule says Use on are and Rule replace use Fill "
    "square each digit once row column Complete Latin empty cells any No twice or Square fill no "
    "Who waits at People wait after Some join some leave left people who give Add What sum numbers "
    "Numbers add List so many different Choose number most Number list choose keys values into "
    "object Make Keys word joins leaves behind someone"
).split()


def build() -> Tokenizer:
    """Make the tokenizer; the same ids every time."""
    singles = [c for c in string.ascii_letters + string.digits + string.punctuation]
    pieces = ["\n", " ", '{"', '":', ',"', *singles, *(f" {c}" for c in singles)]
    return assemble([*pieces, *WORDS, *(f" {w}" for w in WORDS), *KEYS], _PIECES)
