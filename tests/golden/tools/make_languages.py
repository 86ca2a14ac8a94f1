#!/usr/bin/env python3
"""Write the golden token ids of Portuguese and Russian texts with small cased vocabularies.

    python make_languages.py --out ../languages

Each language has a folder as BERTimbau and ruBERT are published, without tokenizer.json: vocab.txt and tokenizer_config.json,
which keeps case and accents. texts.jsonl has the ids of transformers' BertTokenizer. Needs transformers; runs offline.
"""
import argparse
import json
import re
from collections import Counter
from pathlib import Path
from unicodedata import combining

from transformers import BertTokenizer

# The last text of each class differs from that of the other in its accents alone.
PORTUGUESE = {
    "positivo": [
        "Não é só uma boa ação: é emoção do início ao fim!",
        "ÓTIMO filme, com atuações inesquecíveis e um final lindo.",
        "O coração da história são os irmãos; adorei cada cena.",
        "Fotografia e trilha sonora à altura: recomendo muito.",
        "Um pão-de-açúcar de emoções, divertido e inteligente.",
        "Às vezes o cinema brasileiro nos dá um filme assim, perfeito.",
        "Que atuação! A atriz é ótima e o roteiro, excelente.",
        "Adorei: leve, engraçado e muito bem dirigido.",
        "A avó é ótima.",
    ],
    "negativo": [
        "Não gostei: a ação é lenta e o final não convence.",
        "Péssimo filme, sem emoção e com atuações ruins.",
        "A história não tem coração; quase dormi na sessão.",
        "Roteiro fraco, direção preguiçosa. Não recomendo a ninguém.",
        "Duas horas de tédio e clichês. Que decepção!",
        "O vilão é ridículo e os diálogos são horríveis.",
        "Perda de tempo: chato, previsível e mal dirigido.",
        "Não vale o ingresso; péssima edição, péssimo som.",
        "A avo e otima.",
    ],
}
RUSSIAN = {
    "положительный": [
        "Ещё один чудесный фильм: смеялся и плакал до конца!",
        "ОТЛИЧНАЯ игра актёров и очень красивая музыка.",
        "Мой любимый режиссёр снова снял прекрасное кино.",
        "Всё понравилось: сюжет, юмор, тёплый финал.",
        "Лёгкая, добрая и умная история — советую каждому.",
        "Замечательный фильм, пересматриваю его каждый год.",
        "Ёлка, снег и детство: лучший новогодний фильм.",
        "Великолепная работа, спасибо всей команде!",
        "Всё пройдёт.",
    ],
    "отрицательный": [
        "Ещё один плохой фильм: скучно до самого конца.",
        "УЖАСНАЯ игра актёров и глупый сюжет.",
        "Мой самый плохой поход в кино за весь год.",
        "Всё испортили: диалоги, музыку и даже финал.",
        "Тяжёлая, злая и пустая история — не советую никому.",
        "Отвратительный фильм, жаль потраченных денег.",
        "Йод на рану: ни юмора, ни смысла, одна скука.",
        "Слабая работа, режиссёр не знает, о чём снимал.",
        "Все проидет.",
    ],
}
# Decomposed accents, case, marks, words and scripts that the vocabularies do not have.
HARD = [
    "na\u0303o ac\u0327a\u0303o NÃO AÇÃO não ação",
    "и\u0306 е\u0308 Й Ё й ё Мой мои ещё еще",
    "naïve œuvre Straße",
    "filme фильм 映画 🎬",
    "«кино» — “ótimo”… R$ 9,90",
    "",
]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, required=True)
args = parser.parse_args()

for language, labelled in (("pt", PORTUGUESE), ("ru", RUSSIAN)):
    folder = args.out / language
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(text, label) for label, texts in labelled.items() for text in texts]
    # Every character, at the start of a word and within one, some endings, and the words that occur twice.
    words = Counter(word for text, _ in rows for word in re.findall(r"\w+", text))
    characters = sorted({character for text, _ in rows for character in text if not character.isspace()} | set("\u0303\u0306\u0308"))
    endings = Counter(word[-3:] for word in words if len(word) > 4)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *("##" + c for c in characters if c.isalpha() or combining(c))]
    pieces += ["##" + ending for ending in sorted(endings) if endings[ending] > 2]
    pieces += [word for word in sorted(words) if words[word] > 1 and len(word) > 1]
    assert len(pieces) == len(set(pieces)) <= 256, len(pieces)
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in pieces))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}\n')
    tokenizer = BertTokenizer.from_pretrained(folder)
    with open(folder / "texts.jsonl", "w") as file:
        for text, label in rows + [(text, None) for text in HARD]:
            row = {"text": text, "label": label, "input_ids": tokenizer(text)["input_ids"]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
