# SPDX-License-Identifier: MIT
"""The training documents: stories, books, and small talk in the form of the model's chat template.

A document is a list of pieces; a piece is a special token's name or a text. Stories also come as answers
to a request that names what is in them, so that the model learns to be asked.
"""
import bz2
import collections
import json
import lzma
import os
import random
import re

BOS, EOT, USER, ASSISTANT, END = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|user|>", "<|assistant|>", "<|end|>")
SPECIALS = [BOS, EOT, USER, ASSISTANT, END]

PLAIN = ["Tell me a story.", "Tell me a story", "Please tell me a story.", "Can you tell me a story?",
         "I want to hear a story.", "Write a short story.", "Tell me a bedtime story.",
         "Tell me a short story, please.", "Could you write a story for children?", "A story, please!",
         "tell me a story"]
ABOUT = ["Tell me a story about {}.", "Tell me a story about {}", "Please tell me a story about {}.",
         "Can you tell me a story about {}?", "Write a short story about {}.", "Write a story about {}.",
         "I would like to hear a story about {}.", "Make up a story about {}.",
         "Tell me a bedtime story about {}.", "I want a story with {} in it.", "A story about {}, please."]


def rows(folder, name):
    path = os.path.join(folder, name)
    with (bz2 if path.endswith("bz2") else lzma).open(path, "rt", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def tidy(text):
    return re.sub(r"\n{3,}", "\n\n", text.replace("\r", "")).strip()


class Topics:
    """What a story is about: things that it names more often than other stories do, and its names."""

    def __init__(self, stories):
        self.seen = collections.Counter()
        for s in stories:
            self.seen.update(set(re.findall(r"[a-z]+", s.lower())))
        self.n = len(stories)

    def of(self, story):
        things = collections.Counter(
            m.group(1) for m in re.finditer(r"\b(?:a|an|the|his|her|their|little|big|old) ([a-z]{3,})\b",
                                            story.lower()))
        things = [w for w, k in things.items()
                  if k >= 2 and 8 <= self.seen[w] < 0.06 * self.n and w[-2:] not in ("ly", "ed")]
        things.sort(key=lambda w: self.seen[w])
        names = re.findall(r"\b(?:named|called) ([A-Z][a-z]+)\b", story)
        return things[:4], names[:2]


def article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def request(topics, story, rng):
    things, names = topics.of(story)
    what = [article(w) for w in things]
    rng.shuffle(what)
    if names and rng.random() < 0.35:
        what.insert(0, names[0])
    if not what or rng.random() < 0.3:
        return rng.choice(PLAIN)
    n = min(len(what), 1 if rng.random() < 0.6 else 2)
    return rng.choice(ABOUT).format(" and ".join(what[:n]))


def chat(turns):
    doc = [BOS]
    for i, text in enumerate(turns):
        doc += [ASSISTANT if i % 2 else USER, text, END]
    return doc + [EOT]


def story_docs(folder, rng, variants):
    """(plain, asked): each story as it is, and as an answer, `variants` times with other requests."""
    texts = [tidy(r["x"]) for r in rows(folder, "tinystories.train.jsonl.xz")]
    texts = [t for t in texts if len(t) > 100 and t[-1] in ".!?\""]
    kids = [r for r in rows(folder, "kids-ccby.train.jsonl.xz")]
    topics = Topics(texts)
    plain = [[BOS, t, EOT] for t in texts]
    asked = [chat([request(topics, t, rng), t]) for t in texts for _ in range(variants)]
    plain_kids = [[BOS, tidy(r["x"]), EOT] for r in kids]
    asked += [chat([rng.choice(ABOUT).format("“" + r["t"] + "”" if rng.random() < 0.3 else r["t"]),
                    tidy(r["x"])]) for r in kids if len(r["x"]) < 5000]
    return plain, asked, plain_kids


def talk_docs(folder, rng):
    docs = []
    for r in rows(folder, "chitchat.train.jsonl.xz"):
        answers = [r["a"][k] for k in ("friendly", "caring", "enthusiastic") if k in r["a"]]
        answers = answers or list(r["a"].values())
        for q in r["q"]:
            docs.append(chat([q, rng.choice(answers)]))
    for r in rows(folder, "chatterbot.train.jsonl.xz"):
        turns = r["t"][: len(r["t"]) // 2 * 2]
        if turns:
            docs.extend([chat(turns)] * 2)
    for r in rows(folder, "factbook.train.jsonl.xz"):
        name, capital = r.get("name"), r.get("capital")
        if not name or len(name) > 40:
            continue
        if capital:
            capital = re.split(r"[;(]", capital)[0].strip()
            q = rng.choice(["What is the capital of {}?", "what is the capital of {}",
                            "Which city is the capital of {}?"]).format(name)
            docs.append(chat([q, f"The capital of {name} is {capital}."]))
        if r.get("location"):
            docs.append(chat([f"Where is {name}?", f"{name} is in {r['location']}."]))
        if r.get("highest"):
            docs.append(chat([f"What is the highest point of {name}?", f"It is {r['highest']}."]))
        if r.get("background"):
            docs.append(chat([f"Tell me about {name}.", tidy(r["background"])[:1500]]))
    rng.shuffle(docs)
    return docs


def books(folder):
    for name in ("pd-youth.train.jsonl.bz2", "pd-youth-2.train.jsonl.bz2"):
        yield [tidy(r["x"]) for r in rows(folder, name)]


def held(folder):
    """name -> documents, each with bos and the end that training has."""
    stories = [tidy(r["x"]) for r in rows(folder, "tinystories.held.jsonl.xz")][:600]
    kids = [tidy(r["x"]) for r in rows(folder, "kids-ccby.held.jsonl.xz")]
    youth = [tidy(r["x"]) for r in rows(folder, "pd-youth.held.jsonl.xz")]
    with lzma.open(os.path.join(folder, "wikitext-2.test.txt.xz"), "rt", encoding="utf-8") as f:
        wiki = f.read()
    return {"tinystories": stories, "kids-ccby": kids, "pd-youth": youth, "wikitext-2": [wiki]}


if __name__ == "__main__":
    import sys
    rng = random.Random(1)
    plain, asked, kids = story_docs(sys.argv[1], rng, 1)
    talk = talk_docs(sys.argv[1], rng)
    for d in rng.sample(asked, 12):
        print(d[2], "=>", d[5][:70].replace("\n", " "))
    for d in rng.sample(talk, 12):
        print([p for p in d if p not in SPECIALS])
    print(len(plain), len(asked), len(kids), len(talk))
