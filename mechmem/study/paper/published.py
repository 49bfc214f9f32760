"""Every number that Stoehr et al. (2024, arXiv 2403.19851v1) report and that is measured here, with its place."""

# Section 3, the sets: paragraphs of each group of EM.
COUNTS = {"0-10": 12_422.0, "11-29": 436.0, "30-49": 141.0, "50": 442.0}

# Section 3.1, prefix perturbation: mean fall of EM for one replaced token, in tokens.
EM_DROP_MEMORIZED = 12.19
EM_DROP_OTHER = 33.12
# Figure 2, the largest fall that one token causes, in tokens (read off the text: "up to 45").
EM_DROP_LARGEST = 45.0

# Figure 3, activation patching: ends of the colour scales, in nats.
PATCH_SCALE_MEMORIZED = 0.08
PATCH_SCALE_PERTURBED = 0.6

# Section 4.1 and figure 4, parameter gradients: sum and variance of the 600 component scores, by group of EM.
GRADIENT_SUM = {"0-10": 53.01, "11-29": 27.14, "30-49": 14.30, "50": 9.71}
GRADIENT_VARIANCE = {"0-10": 3.26e-2, "11-29": 5.10e-3, "30-49": 9.33e-4, "50": 4.78e-4}
# Figure 4, sums by layer, layers 0 to 11.
GRADIENT_LAYERS = {
    "0-10": (1.25, 3.84, 3.07, 2.48, 2.37, 2.53, 12.06, 6.76, 8.58, 3.27, 3.33, 3.47),
    "11-29": (0.99, 2.49, 2.05, 1.71, 1.88, 1.71, 4.35, 3.22, 4.27, 1.70, 1.50, 1.26),
    "30-49": (0.70, 1.97, 1.31, 1.38, 1.21, 1.10, 1.61, 1.33, 1.36, 0.95, 0.83, 0.56),
    "50": (0.56, 1.51, 1.01, 1.00, 0.96, 0.66, 1.10, 0.89, 0.72, 0.56, 0.47, 0.27),
}
# From figure 4: share of layers 0 to 3 in the sum.
LOWER_SHARE = {"0-10": 0.20, "50": 0.42}

# Section 4.2, contrastive gradient: the most salient component, layer and head.
SALIENT_LAYER = 1
SALIENT_HEAD = 2

# Section 4.3 and table 1, sparse fine-tuning: mean EM after, in tokens: (memorized, other).
UNLEARNED_EM = {"all": (26.90, 45.11), "top": (26.75, 45.84), "random": (49.80, 44.86)}
EDITED_EM = {"all": (25.65, 37.57), "top": (33.65, 38.67), "random": (49.80, 44.86)}
# Attention and MLP weights, of which 0.1 % are tuned.
EDITABLE_WEIGHTS = 84_934_656

# Section 5, the memorization head: correlation of attention with corpus frequency, and over how many token types.
RARE_TOKEN_CORRELATION = -0.97
TOKEN_TYPES = 34_562
