"""Sentences for the synthetic corpus, with slots that near-duplicates fill differently."""

from __future__ import annotations

import random
import re

from mechmem.synthetic.lexicon import ADVERBS, Lexicon, Topic, gerund, past, third_person

SLOT = re.compile("\x02([a-z]+)([0-9]*)\x03")
MONTHS = "January February March April May June July August September October November December".split()
PREPOSITIONS = [
    "of",
    "of",
    "for",
    "in",
    "with",
    "from",
    "on",
    "under",
    "near",
    "between",
    "after",
    "without",
    "against",
]
DETERMINERS = ["the", "the", "the", "a", "this", "any", "each", "its", "their", "our", "every", "no", "such"]


def slot(kind: str, number: int | str = "") -> str:
    """A place that `fill` replaces; the same kind and number get the same value throughout one document."""
    return f"\x02{kind}{number}\x03"


class Writer:
    """Draws sentences from a topic's words. One writer writes one template."""

    def __init__(self, lexicon: Lexicon, topic: Topic, rng: random.Random) -> None:
        """Take the words to use and the source of randomness."""
        self.lexicon, self.topic, self.rng = lexicon, topic, rng

    def one_of(self, *choices: str) -> str:
        """One of the given texts, each as likely."""
        return self.rng.choice(choices)

    def noun(self) -> str:
        """A noun of the topic, at times any noun of the language."""
        return (self.topic if self.rng.random() < 0.85 else self.lexicon).nouns.draw(self.rng)

    def verb(self) -> str:
        """A verb, base form."""
        return (self.topic if self.rng.random() < 0.85 else self.lexicon).verbs.draw(self.rng)

    def adjective(self) -> str:
        """An adjective."""
        return (self.topic if self.rng.random() < 0.85 else self.lexicon).adjectives.draw(self.rng)

    def name(self) -> str:
        """A name that belongs to the template itself: a person, a place or a company."""
        bag = self.rng.choice(
            [self.lexicon.surnames, self.lexicon.surnames, self.lexicon.places, self.lexicon.companies]
        )
        return bag.draw(self.rng)

    def noun_phrase(self) -> str:
        """Determiner, adjective and noun, some with a complement."""
        if self.rng.random() < 0.12:
            return self.name()
        words = [self.rng.choice(DETERMINERS)]
        if self.rng.random() < 0.45:
            words.append(self.adjective())
        noun = self.noun()
        if words[0] in ("the", "our", "their", "its") and self.rng.random() < 0.35:
            noun = third_person(noun)
        words.append(noun)
        phrase = " ".join(words)
        if self.rng.random() < 0.2:
            phrase += f" of {self.rng.choice(['the', 'a', 'its'])} {self.noun()}"
        return re.sub(r"\b(a|A) (?=[aeiou])", r"\1n ", phrase)

    def predicate(self, tense: str) -> str:
        """Verb, object and perhaps a prepositional phrase, in the `past`, the `present` or the `modal` mood."""
        verb = self.verb()
        form = {"past": past(verb), "present": third_person(verb)}.get(tense) or (
            f"{self.one_of('shall', 'may', 'must', 'will', 'may not', 'shall not', 'can')} {verb}"
        )
        if self.rng.random() < 0.15:
            form = f"{self.rng.choice(ADVERBS)} {form}"
        text = f"{form} {self.noun_phrase()}"
        if self.rng.random() < 0.5:
            text += f" {self.rng.choice(PREPOSITIONS)} {self.noun_phrase()}"
        return text

    def clause(self, tense: str, subject: str | None = None) -> str:
        """Subject and predicate, without a full stop."""
        return f"{subject or self.noun_phrase()} {self.predicate(tense)}"

    def sentence(self, tense: str, *, subject: str | None = None) -> str:
        """A sentence with a capital and a full stop, at times with a subordinate clause or a participle."""
        text = self.clause(tense, subject)
        chance = self.rng.random()
        if chance < 0.2:
            text += f", {self.one_of('and', 'but', 'while', 'because', 'unless', 'where')} {self.clause(tense)}"
        elif chance < 0.32:
            text += f", {gerund(self.verb())} {self.noun_phrase()}"
        elif chance < 0.42:
            text = f"{self.one_of('In', 'After', 'Before', 'During', 'Despite')} {self.noun_phrase()}, {text}"
        return text[0].upper() + text[1:] + "."

    def sentences(self, tense: str, least: int, most: int) -> str:
        """Several sentences on one line."""
        return " ".join(self.sentence(tense) for _ in range(self.rng.randint(least, most)))

    def identifier(self, *, capital: bool = False, separator: str = "") -> str:
        """A name as programmers write it: `camelCase`, `CamelCase`, or words joined by `separator`."""
        words = [self.one_of(self.verb(), self.adjective(), self.noun()), self.noun()]
        if self.rng.random() < 0.3:
            words.insert(1, self.adjective())
        if separator:
            return separator.join(words)
        text = "".join(word.capitalize() for word in words)
        return text if capital else text[0].lower() + text[1:]


def fill(template: str, lexicon: Lexicon, rng: random.Random) -> str:
    """Replace every slot by a value; one kind and number has one value in a document."""
    values: dict[str, str] = {}

    def value(match: re.Match[str]) -> str:
        key = match.group(0)
        if key not in values:
            values[key] = _value(match.group(1), lexicon, rng)
        return values[key]

    return SLOT.sub(value, template)


def _value(kind: str, lexicon: Lexicon, rng: random.Random) -> str:
    match kind:
        case "person":
            return f"{lexicon.first_names.draw(rng)} {lexicon.surnames.draw(rng)}"
        case "surname":
            return lexicon.surnames.draw(rng)
        case "company":
            return lexicon.companies.draw(rng)
        case "place":
            return lexicon.places.draw(rng)
        case "date":
            return f"{rng.choice(MONTHS)} {rng.randint(1, 28)}, {rng.randint(1981, 2019)}"
        case "year":
            return str(rng.randint(1981, 2019))
        case "version":
            return f"{rng.randint(0, 9)}.{rng.randint(0, 20)}.{rng.randint(0, 30)}"
        case "number":
            return str(rng.randint(2, 10 ** rng.randint(1, 4)))
        case "host":
            domain = lexicon.surnames.draw(rng).lower()
            return f"{domain}.{rng.choice(['example', 'test', 'invalid'])}"
        case "package":
            return ".".join(lexicon.surnames.draw(rng).lower() for _ in range(2))
        case "hex":
            return f"{rng.getrandbits(32):08x}"
        case _:
            raise KeyError(kind)
