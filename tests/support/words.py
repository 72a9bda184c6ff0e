"""A byte-pair vocabulary of a few hundred tokens: every byte, and the words that the tests say, whole.

Models of it are a hundredth of the size of those of GPT-2's vocabulary.
"""

import re

from gpt2cli.templates import PREAMBLE
from gpt2cli.tokenizer.base import END_OF_TEXT
from gpt2cli.tokenizer.bpe import BPE
from gpt2cli.tokenizer.merges import CHARACTER_OF

SAID = (  # words without a space before them last: what they begin with is in others too
    f"{PREAMBLE}\nInstruction\nInput\nResponse\nUser\nAssistant\nSystem\nSay\nGo"
    " zero one two three four word times and it a question of some length, asked again why so on nothing"
    "\nword\nwhy\nand\nquestion"
)


def vocabulary_of(text: str = "") -> BPE:
    """Each word of `text` with the space before it is a token, and so is each of its beginnings.

    Without a text, each byte and the end of text: 257.
    """
    vocab = {character: i for i, character in enumerate(CHARACTER_OF.values())}
    merges = []
    for word in re.findall(r" ?[a-zA-Z]+", text):
        made, *rest = (CHARACTER_OF[byte] for byte in word.encode())
        for character in rest:
            if made + character not in vocab:
                merges.append((made, character))
                vocab[made + character] = len(vocab)
            made += character
    tokenizer = BPE.from_vocabulary(vocab | {END_OF_TEXT: len(vocab)}, merges, {}, "words")
    for word in re.findall(r" ?[a-zA-Z]+", text):
        assert len(tokenizer.encode(word)) == 1, f"{word} falls apart"
    return tokenizer


BYTES = vocabulary_of()
WORDS = vocabulary_of(SAID)
