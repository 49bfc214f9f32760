"""What the page says about each item and each trap: titles, questions, and how to read the numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """The words of one item's section.

    Attributes:
        title: a few words.
        question: what the study asks.
        reading: what the two readings do, and how to read the numbers.
    """

    title: str
    question: str
    reading: tuple[str, ...]


WORDING: dict[str, Wording] = {
    "sets": Wording(
        "Sets and scores",
        "How many paragraphs are in each group, and how likely is their text?",
        (
            "EM is the number of leading continuation tokens that greedy decoding reproduces, 0 to 50. NLL is the mean "
            "of -log p(token) over the continuation, in nats per token.",
            "As published: the logit columns from 50 on, which skip the first token of the continuation. Corrected: "
            "the columns 49 to 98, which score all 50.",
        ),
    ),
    "perturbation": Wording(
        "1. Prefix perturbation",
        "How much of a paragraph is left when one token of its prefix is replaced by a random one?",
        (
            "EM drop: EM of the unperturbed run minus EM with the replacement, mean over positions and paragraphs; "
            "higher: more fragile.",
            "As published: position 0 is the unperturbed run and counts as a drop of zero, and a random token may be "
            "the one that it replaces. Others are compared with the model's own continuation. Corrected: all positions "
            "are replaced, always by another token.",
        ),
    ),
    "patching": Wording(
        "2. Activation patching",
        "Which heads carry the difference between a memorized paragraph and its perturbed copy?",
        (
            "One head's query, key or value at the replaced token is taken from the other run. The effect is the "
            "change of the patched run's own NLL at the first token that differs, in nats.",
            "Two panels: the memorized run patched with the perturbed run's activations, scored on the memorized "
            "text; and the perturbed run patched with the memorized run's, scored on the perturbed run's own text. The "
            "second is not the same as scoring the memorized text in the perturbed run, which is a third panel.",
        ),
    ),
    "parameter_gradients": Wording(
        "3. Parameter gradients",
        "Where is the gradient of the loss large, on memorized and on other text?",
        (
            "The gradient of the mean NLL over a group; the score of a component is its largest absolute entry. A "
            "layer has four components for each head (Q, K, V, O) and two of the MLP.",
            "As published: folded weights, columns from 50 on, and the model's own text for the groups below EM 50. "
            "Corrected: the checkpoint's weights, true text and all 50 columns.",
            "Intervals: a jackknife over blocks of clusters.",
            "Memorized gradients are smaller in every layer; what is larger is the share of the lower layers.",
        ),
    ),
    "contrastive": Wording(
        "4. Contrastive objective",
        "Which weights lower the memory of some paragraphs while others are held?",
        (
            "The objective raises the NLL of memorized paragraphs and holds KL(p_0 || p) on others. At the starting "
            "weights that KL has no gradient, so that the objective's gradient is that of the memorized NLL alone.",
            "As published: the largest absolute entry of that gradient in a component, folded weights. Corrected: the "
            "gradient over the root of the other set's mean squared gradient (Fisher information), raw weights. "
            "Intervals of ranks: groups of clusters drawn with replacement.",
        ),
    ),
    "finetuning": Wording(
        "5. Sparse fine-tuning",
        "Does tuning 0.1 % of the weights unlearn or edit a paragraph, and what does it cost others?",
        (
            "Memorized: EM of the targets' own text; lower: more of it is gone. Other: EM of paragraphs that the run "
            "was not given, against what the model wrote before; higher: they are changed less.",
            "As published: folded weights, Adam with coupled weight decay 1.0 on every weight, half of the named "
            "share, a random mask by chance, and for edits the perturbed text of another paragraph, wanted of a model "
            "that reads the memorized one.",
            "Corrected: raw weights, an optimizer that holds the masked weights alone at a rate that is searched, a "
            "mask that knows the keep set, random weights with the same count in every tensor, and each paragraph's "
            "own perturbed text after its own prefix. A run ends when the mean EM is a fifth or the new text is said.",
        ),
    ),
    "activation_gradients": Wording(
        "6. Activation gradients",
        "Which heads' values does the loss of memorized text depend on?",
        (
            "The largest absolute gradient of the NLL over a head's value vector and the positions; mean over "
            "paragraphs. Rank 1 is the head with the largest.",
        ),
    ),
    "head": Wording(
        "7. Attention to rare tokens",
        "Does a head attend to rare tokens of the prefix?",
        (
            "Attention from the first token of the continuation to every token of the prefix, against how often the "
            "token occurs in the corpus. Below zero: rare tokens get more. The study names no coefficient.",
            "As published: attention summed over paragraphs by the dense rank of the token's count in its paragraph, "
            "the rarest first. Few paragraphs reach high ranks, so that sums can fall whatever a head does: attention "
            "spread evenly is the control. Corrected: mean attention by token.",
        ),
    ),
    "noise": Wording(
        "8. Noise on selected weights",
        "How much noise on the selected weights do memories survive?",
        (
            "Gaussian noise of so many standard deviations of each weight's own component; means over draws.",
            "As published: folded weights, half of the named share, and the head's weights by their places in the "
            "head, which in the whole tensor are those of head 0. Corrected: raw weights, the whole share chosen on "
            "other paragraphs, and the head itself. The note gives the value with noise on as many random weights.",
        ),
    ),
}

# Each trap, and the item that measures it.
TRAPS: dict[int, tuple[str, str]] = {
    1: ("Weight decay makes the sparse run dense", "finetuning"),
    2: ("KL of the model with itself has no gradient", "contrastive"),
    3: ("The scored columns skip the first continuation token", "sets"),
    4: ("NLL after decoding is that of true tokens in a self-generated context", "sets"),
    5: ("The text of other paragraphs is the model's own", "sets"),
    6: ("Editing pairs a paragraph with another paragraph's perturbation", "finetuning"),
    7: ("Attention summed by frequency rank slopes for every head", "head"),
    8: ("Noise on head 2 lands on head 0, and 0.1 % is 0.05 %", "noise"),
    9: ("The random mask is not matched tensor by tensor", "finetuning"),
    10: ("Position 0 is never replaced, and a token may replace itself", "perturbation"),
    11: ("Random splits leak near-duplicates", "finetuning"),
    12: ("EM until the first mismatch exaggerates damage", "perturbation"),
    13: ("EM needs one forward pass, not 50 decoding steps", "sets"),
    14: ("One patch per forward, and logits of every position", "patching"),
}
