"""The word forms of the synthetic corpus: a Zipf-like vocabulary with a long tail of invented words and names.

Common words are English so that documents can be read; the tail is built from syllables so that no rare name is
anybody's. `Lexicon` holds the whole vocabulary, `Topic` the small part of it that one document draws on: words of a
topic recur together, which is what a model can learn of a fresh document without having seen it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

NOUNS = """account address agreement amount animal answer archive area article author bank board body book border branch
bridge budget building buyer camera captain card case cause cell center chain change channel chapter child choice city
claim clause client coast code college column comment committee company contract copy council country course court
crew critic customer damage data decision delay deposit design detail device director district doctor document driver
duty editor effect engine entry error event exchange expert factory family farmer fee field figure file filter fire
folder forest form forum friend fund garden group guard guide harbor history holder hospital hotel house image index
industry interest island issue item journal judge kernel key kitchen lake language lawyer leader lender letter level
library license limit line link list loan machine manager margin market matrix measure member memory message method
minister mirror model module morning motor museum network notice number object office officer option order owner page
panel paper parent park partner party path patient payment people period permit person phone plan plant player plot
policy port post price prison process product program project protocol query question queue rate reader reason record
region remedy report request resident result review river road route rule sample school score season seller sensor
series server service session ship signal site song sound source speaker stage state station statute stone store storm
street student study supply surface survey system table tax teacher term test text theory ticket title tool tower town
track trade train tree trial tunnel union unit user value vendor vessel video village visitor voice vote wall warning
water weapon window winter witness worker writer year zone""".split()
VERBS = """accept add adjust admit allow answer appeal apply appoint approve argue arrest arrive assert assign attach
avoid block borrow call cancel capture charge check claim clean collect compare compute confirm connect consider
contact contain copy correct cover create cross cut deliver demand deny depend deposit destroy detect develop direct
discover discuss display divide drop earn edit employ enable end enforce enter establish estimate examine exclude
expect explain export extend fail file fill filter follow force form gather grant guard handle help hold import improve
include index inform inspect install intend issue join kill launch lift limit link list load lock mark measure merge
miss modify mount move need notify observe obtain occur offer open order own park pass pay perform permit place plan
play present prevent print process produce promise protect prove provide pull push quote raise reach read receive
record reduce refer reject release remain remove render repair replace reply report request require reserve reset
resolve restore retain return reveal review roll save search select sell send serve settle share show sign sort start
stop store submit suggest supply support suspend test touch track train transfer treat turn update visit wait walk warn
wash watch wish work wrap""".split()
ADJECTIVES = """able active actual ancient annual basic binding blank bright broad calm central cheap civil clear cold
common compact complete complex confidential current dark deep default direct distant double dry early eastern empty
equal exact external fair familiar fast final fine firm foreign former formal free fresh full general global good grand
gross hard heavy hidden high human idle internal joint junior key large late legal light linear local long loud low
major manual medical minor mobile modern mutual narrow native new normal northern notable novel old open optional
original outer parallel partial plain private prior proper public quick quiet random rapid rare raw recent regional
regular reliable remote rich royal rural safe secure senior serious sharp short silent simple single slow small smooth
social solid southern special stable steep strict strong sudden tall thick thin third tiny total tough upper urban
usual valid vast visible warm weak western wet whole wide wild wise written young""".split()
ADVERBS = """again already also carefully clearly directly early entirely finally formally fully generally gradually
immediately initially jointly largely lately mainly merely often only partly promptly properly quickly quietly rarely
really recently separately slowly solely soon still strictly subsequently suddenly then together usually widely
""".split()
ONSETS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k kr l m n p pl pr qu r s sh sk sl st str t th tr v w wr y z".split()
)
NUCLEI = "a e i o u ai ea ee ie oa oo ou au ei".split()
CODAS = [
    "",
    "",
    "",
    "",
    "b",
    "ck",
    "d",
    "l",
    "ll",
    "m",
    "n",
    "nd",
    "ng",
    "nt",
    "p",
    "r",
    "rd",
    "rk",
    "rn",
    "s",
    "st",
    "t",
    "x",
]
NOUN_ENDINGS = ["", "", "er", "ion", "ment", "ance", "ity", "ist", "age", "or"]
ADJECTIVE_ENDINGS = ["al", "ic", "ous", "ive", "ary", "ant", "ish", "ular"]
PLACE_ENDINGS = ["ton", "ville", "burg", "mouth", "ford", "by", "ham", "stead", "holm", "a", "ia", "dale"]
COMPANY_ENDINGS = [
    "Systems",
    "Holdings",
    "Labs",
    "Partners",
    "Press",
    "Media",
    "Foundation",
    "Group",
    "Software",
    "Bank",
]


def zipf_weights(count: int, exponent: float, offset: float = 2.0) -> list[float]:
    """Cumulative Zipf-Mandelbrot weights (rank + offset) ** -exponent, ready for `random.choices`."""
    return list(accumulate((rank + offset) ** -exponent for rank in range(count)))


@dataclass(frozen=True)
class Bag:
    """Words with cumulative weights: the earlier, the more frequent."""

    words: Sequence[str]
    cumulative: Sequence[float]

    @staticmethod
    def zipf(words: Sequence[str], exponent: float) -> Bag:
        """Give the words, in their order, Zipf-like frequencies."""
        return Bag(words, zipf_weights(len(words), exponent))

    def draw(self, rng: random.Random) -> str:
        """One word by frequency."""
        return rng.choices(self.words, cum_weights=self.cumulative)[0]

    def some(self, rng: random.Random, count: int) -> list[str]:
        """Distinct words, `count` of them, by frequency."""
        chosen: dict[str, None] = {}
        while len(chosen) < count:
            chosen[self.draw(rng)] = None
        return list(chosen)


def _syllable(rng: random.Random) -> str:
    return rng.choice(ONSETS) + rng.choice(NUCLEI) + rng.choice(CODAS)


def _invented(
    rng: random.Random, count: int, syllables: Sequence[int], endings: Sequence[str], taken: set[str]
) -> list[str]:
    words: list[str] = []
    while len(words) < count:
        word = "".join(_syllable(rng) for _ in range(rng.choice(syllables))) + rng.choice(endings)
        if word not in taken and 3 <= len(word) <= 12:
            taken.add(word)
            words.append(word)
    return words


class Lexicon:
    """Every word form of the corpus, from one seed."""

    def __init__(self, seed: int) -> None:
        """Build the vocabulary: 4,300 noun, 2,200 verb and 2,200 adjective stems and 22,000 names."""
        rng = random.Random(f"lexicon {seed}")
        taken = {*NOUNS, *VERBS, *ADJECTIVES, *ADVERBS}
        self.nouns = Bag.zipf(_shuffled(rng, NOUNS) + _invented(rng, 4000, (1, 2, 2), NOUN_ENDINGS, taken), 1.2)
        self.verbs = Bag.zipf(_shuffled(rng, VERBS) + _invented(rng, 2000, (1, 2), ["", "", "ate", "ize"], taken), 1.2)
        self.adjectives = Bag.zipf(
            _shuffled(rng, ADJECTIVES) + _invented(rng, 2000, (1, 2), ADJECTIVE_ENDINGS, taken), 1.2
        )
        names = [word.capitalize() for word in _invented(rng, 22000, (2, 2, 3), [""], taken)]
        self.first_names = Bag.zipf(names[:1500], 0.9)
        self.surnames = Bag.zipf(names[1500:14000], 0.6)
        self.places = Bag.zipf([n + rng.choice(PLACE_ENDINGS) for n in names[14000:18000]], 0.7)
        self.companies = Bag.zipf([f"{n} {rng.choice(COMPANY_ENDINGS)}" for n in names[18000:]], 0.7)


def _shuffled(rng: random.Random, words: Sequence[str]) -> list[str]:
    return rng.sample(words, len(words))


@dataclass(frozen=True)
class Topic:
    """The words one document draws on; most documents of a topic share them."""

    nouns: Bag
    verbs: Bag
    adjectives: Bag

    @staticmethod
    def draw(lexicon: Lexicon, rng: random.Random) -> Topic:
        """Choose a topic's words from the lexicon: common ones are in most topics, rare ones in one."""
        return Topic(
            Bag.zipf(lexicon.nouns.some(rng, 70), 0.9),
            Bag.zipf(lexicon.verbs.some(rng, 40), 0.9),
            Bag.zipf(lexicon.adjectives.some(rng, 30), 0.9),
        )


def past(verb: str) -> str:
    """The regular past tense."""
    if verb.endswith("e"):
        return verb + "d"
    return verb[:-1] + "ied" if verb.endswith("y") and verb[-2] not in "aeiou" else verb + "ed"


def third_person(verb: str) -> str:
    """The regular third person singular; also the regular plural of a noun."""
    if verb.endswith(("s", "x", "z", "ch", "sh")):
        return verb + "es"
    return verb[:-1] + "ies" if verb.endswith("y") and verb[-2] not in "aeiou" else verb + "s"


def gerund(verb: str) -> str:
    """The regular -ing form."""
    return (verb[:-1] if verb.endswith("e") and not verb.endswith("ee") else verb) + "ing"
