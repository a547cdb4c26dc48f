"""Synthetic retrieval tasks (RULER-style, named as such): questions come after the compression.

Each is a prefix and questions with one right answer, scored teacher-forced: exact match is every
token of the answer being the most likely one; the answer's NLL is its mean in nats per token.
"""

from __future__ import annotations

import dataclasses
import random

import numpy as np

from dynacompress.profile.llama import KvCache, Llama
from smollm2 import Tokenizer

WORDS = (
    "apple river stone cloud garden window mountain forest bridge candle mirror ocean silver "
    "copper marble velvet lantern harbor meadow orchard castle temple market village desert "
    "island valley canyon glacier volcano rocket engine ladder hammer needle basket bottle "
    "blanket carpet curtain pillow drawer kettle saucer pepper ginger garlic butter cheese almond "
    "walnut cherry orange lemon banana grape melon peach tomato potato carrot onion spinach "
    "lettuce rabbit turtle falcon eagle sparrow dolphin whale salmon tiger panther monkey camel "
    "donkey horse cattle spider beetle violin guitar piano trumpet drum flute chorus opera ballet "
    "theater museum library school college teacher doctor lawyer farmer sailor soldier pilot "
    "miner baker tailor painter singer dancer writer editor winter summer autumn spring sunrise "
    "sunset thunder rainbow shadow feather ribbon crystal diamond emerald ruby amber pearl coral "
    "ivory bronze iron steel timber cotton linen leather wool satin "
).split()
FAR_TOKENS = 640  # tokens of other text between the facts and the questions
LINE = "The code of {key} is {code}.\n"
ASK = "The code of {key} is"


@dataclasses.dataclass(frozen=True)
class Task:
    """A prefix, and (question, answer) pairs that are asked of it one by one."""

    name: str
    prefix: str
    questions: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """Share of exact answers (0..1) and mean NLL per answer token (nats)."""

    exact: float
    nll: float


def key_values(lines: int, seed: int, asked: int = 20, other_text: str = "") -> Task:
    """Lines 'The code of apple is 4821.'; with `other_text` behind them it is far retrieval.

    A question repeats two other lines as examples, without which this small model wanders off.
    """
    rng = random.Random(f"kv{lines}-{seed}")
    codes = {key: str(rng.randrange(1000, 10000)) for key in rng.sample(WORDS, lines)}
    prefix = "".join(LINE.format(key=key, code=code) for key, code in codes.items())
    *keys, one, two = rng.sample(list(codes), min(asked, lines - 2) + 2)
    examples = "\n" + "".join(LINE.format(key=key, code=codes[key]) for key in (one, two))
    questions = tuple((examples + ASK.format(key=key), f" {codes[key]}") for key in keys)
    return Task(f"far {lines}" if other_text else f"kv {lines}", prefix + other_text, questions)


def multi_key(words: int, seed: int, asked: int = 20) -> Task:
    """Two facts of every word, its code and its price: the key is what is asked of which word."""
    rng = random.Random(f"multi{words}-{seed}")
    facts = [(kind, word) for word in rng.sample(WORDS, words) for kind in ("code", "price")]
    lines = {fact: f"The {fact[0]} of {fact[1]} is" for fact in facts}
    values = {fact: f" {rng.randrange(1000, 10000)}" for fact in facts}
    rng.shuffle(facts)
    prefix = "".join(f"{lines[fact]}{values[fact]}.\n" for fact in facts)
    *keys, one, two = rng.sample(facts, min(asked, len(facts) - 2) + 2)
    examples = "\n" + "".join(f"{lines[fact]}{values[fact]}.\n" for fact in (one, two))
    questions = tuple((examples + lines[fact], values[fact]) for fact in keys)
    return Task(f"multi-key {words}", prefix, questions)


def variable_tracking(chains: int, hops: int, seed: int) -> Task:
    """Chains 'apple = 4821', 'river = apple', ...; asked for the value at each chain's end."""
    rng = random.Random(f"vt{chains}-{hops}-{seed}")
    names = iter(rng.sample(WORDS, chains * (hops + 1)))
    rows, ends = [], []
    for _ in range(chains):
        name, value = next(names), str(rng.randrange(1000, 10000))
        rows.append(f"The value of {name} is {value}.\n")
        for _ in range(hops):
            name, before = next(names), name
            rows.append(f"The value of {name} is the same as the value of {before}.\n")
        ends.append((name, value))
    (shown, shown_value), *asked = ends
    example = f"\nThe value of {shown} is {shown_value}.\n"
    questions = tuple((f"{example}The value of {name} is", f" {value}") for name, value in asked)
    return Task(f"variables {chains}x{hops}", "".join(rows), questions)


def frequent_words(kinds: int, seed: int, length: int = 200) -> Task:
    """Lists of words in which one is far more frequent; asked for that one, after an example."""
    rng = random.Random(f"fw{kinds}-{seed}")
    questions, lists = [], []
    for number in range(1, 4):
        words = rng.sample(WORDS, kinds)
        drawn = rng.choices(words, weights=[6] + [1] * (kinds - 1), k=length // 2)
        lists.append(f"List {number}: {', '.join(drawn)}.\n")
        questions.append((f"The most frequent word of list {number} is", f" {words[0]}"))
    shown = "\n" + "".join(questions[0]) + ".\n"
    asked = tuple((shown + lead, answer) for lead, answer in questions[1:])
    return Task(f"frequent {kinds}", "".join(lists), asked)


def ask(model: Llama, tokenizer: Tokenizer, task: Task, cache: KvCache) -> Score:
    """Asks every question of the task on `cache`, which holds (a served form of) the prefix."""
    held, exact, nll = cache.length, [], []
    for question, answer in task.questions:
        lead = tokenizer.encode(question)
        answer_ids = tokenizer.encode(question + answer)[len(lead) :]
        logs = model.log_probabilities(lead + answer_ids[:-1], cache)[len(lead) - 1 :]
        cache.length = held  # the next question must not see this one
        exact.append(bool((logs.argmax(-1) == answer_ids).all()))
        nll.append(-float(logs[np.arange(len(answer_ids)), answer_ids].mean()))
    return Score(float(np.mean(exact)), float(np.mean(nll)))
