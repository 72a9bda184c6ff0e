"""Texts for vocabularies of their own: Russian of made-up words, whose letters have two bytes, and Python."""

import argparse
import inspect
import random
import textwrap

SYLLABLES = """
кни шко до ро га ра бо ма ши на ко мна ми ну не де ла стра ни го за во са мо те ат тра пи бу ду
"""
ENDINGS = "ого ая у ами е ов а ой"
VERBS = "читает пишет видит знает строит рисует находит теряет покупает продаёт помнит ищет любит"
NAMES = "Анна Борис Вера Григорий Дарья Егор Жанна Захар Ирина Кирилл Лариса Максим Нина Олег Пётр"
LINKS = ("и", "но", "потому что", "когда", "если", "—", "хотя")


def russian(n_sentences: int, seed: int) -> str:
    """So many sentences, each on a line; another seed, other sentences of the same words."""
    draw, words = random.Random(seed), random.Random(0)
    stems = ["".join(words.choices(SYLLABLES.split(), k=words.randint(2, 3))) for _ in range(300)]

    def one_of(list_of_words: str) -> str:
        return draw.choice(list_of_words.split())

    def clause() -> str:
        first, second = (draw.choice(stems) + one_of(ENDINGS) for _ in range(2))
        return f"{one_of(NAMES)} {one_of(VERBS)} {first} {second}"

    lines = []
    for _ in range(n_sentences):
        text = f"{clause()} {draw.choice(LINKS)} {clause()}"
        lines.append(text + draw.choice((".", "!", "?", "…", f" ({draw.randrange(2000)} г.)")))
    return "\n".join(lines) + "\n"


TEXTS = {"russian": russian(2500, 1), "code": "".join(map(inspect.getsource, (inspect, textwrap, random)))}


def some_texts(kind: str, n: int = 200) -> list[str]:
    """Other texts of the kind, and such as no vocabulary likes."""
    odd = ["", " ", "\n\n \n", "a  b\t c", "it's we'LL don't", "naïve café 漢字 😀👩‍👩‍👧", "\u2028x\xa0y\x85"]
    odd += ["<|endoftext", "0123456789 3.14"]
    lines = (russian(n, 2) if kind == "russian" else inspect.getsource(argparse)).split("\n")
    return (odd + ["\n".join(lines[i : i + 3]) for i in range(n)])[:n]
