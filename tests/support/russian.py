"""A Russian text of made-up words: letters of two bytes, endings that repeat, and no author."""

import random

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
