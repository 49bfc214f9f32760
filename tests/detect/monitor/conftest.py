"""Random models in both libraries, detectors with random weights, and the slow way to every score."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tokenizers
import tokenizers.models
import tokenizers.pre_tokenizers
import torch
import transformers
from torch import Tensor

from mechmem.detect.detector import Detector
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.features.readout import hooked_readout
from mechmem.detect.features.step_features import StepFeatures, feature_names
from mechmem.detect.features.step_states import StepStates
from mechmem.detect.identity import model_identity
from mechmem.detect.monitor.monitor import Monitor
from mechmem.detect.probes.calibration import PlattCalibration
from mechmem.detect.probes.logistic import LogisticProbes
from mechmem.model.load import load_model

VOCABULARY, LAYERS, WIDTH = 53, 3, 24
END = 7
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "bos_token_id": 0, "pad_token_id": 1}
NO_END: dict[str, Any] = SIZES | {"eos_token_id": None}
COMMON: dict[str, Any] = NO_END | {"max_position_embeddings": 64}
CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        hidden_size=WIDTH, num_layers=LAYERS, num_heads=3, intermediate_size=40, window_size=5,
        attention_types=[[["global", "local", "global"], 1]], **COMMON,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=WIDTH, n_layer=LAYERS, n_head=3, n_inner=40, n_positions=64, **NO_END
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=3, intermediate_size=40,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}, **COMMON,
    ),
}  # fmt: skip
EVERYTHING = FeatureChoice(
    ("output", "prefix", "residual", "lens", "heads", "neurons"),
    depths=(1, LAYERS),
    heads=((0, 1), (2, 2)),
    neurons=((1, 3), (2, 39)),
    rare=(4, 5, 6),
)
PLAIN = FeatureChoice(("output", "residual"), depths=(0, 2))


@dataclasses.dataclass(frozen=True)
class Twins:
    """One random model, as transformers and as TransformerLens run it."""

    causal: Any
    hooked: Any


@pytest.fixture(scope="session")
def twins(tmp_path_factory) -> Callable[[str], Twins]:
    """The same weights in both libraries, by family."""
    made: dict[str, Twins] = {}

    def make(family: str) -> Twins:
        if family not in made:
            with torch.random.fork_rng():
                torch.manual_seed(3)
                causal = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="eager")
                for parameter in causal.parameters():
                    if parameter.ndim == 1:
                        parameter.data += 0.1 * torch.randn(parameter.shape)
            folder = tmp_path_factory.mktemp(family)
            causal.eval().save_pretrained(folder)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*has no tokenizer", UserWarning)
                hooked = load_model(str(folder))
            # Without a tokenizer TransformerLens makes no mask, and then gives decoded tokens wrong positions.
            hooked.tokenizer = word_tokenizer()
            made[family] = Twins(causal, hooked)
        return made[family]

    return make


def word_tokenizer() -> Any:
    """Reads "t09 t40" as [9, 40]; t01 is padding, t07 the end of text."""
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"t{i:02}": i for i in range(VOCABULARY)}, unk_token="t00")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="t00", pad_token="t01", eos_token="t07", bos_token="t07", padding_side="left"
    )


def random_detector(hooked: Any, choice: FeatureChoice = PLAIN, *, threshold: float = 0.5, **changes: Any) -> Detector:
    """Random weights for every column, and a null whose threshold at 0.1 is given."""
    names = feature_names(choice, hooked.cfg.d_model)
    random = torch.Generator().manual_seed(9)
    weight = torch.randn(3, len(names), generator=random) / len(names) ** 0.5
    probes = LogisticProbes(torch.zeros_like(weight), weight, torch.randn(3, generator=random))
    calibration = PlattCalibration(torch.ones(3), torch.zeros(3))
    settings = {
        "null": np.full(99, threshold),
        "rule": "max",
        "generation_len": 50,
        "identity": model_identity(hooked),
    } | changes
    return Detector(choice, names, (0, 2, 6), probes, calibration, **settings)


def plain_scores(hooked: Any, detector: Detector, prompt: Tensor, own: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Scores and statistics of one text at every step, each from a forward over the whole text so far.

    Args:
        hooked: no cache, no padding, no batch.
        detector: any.
        prompt: ids, [pos].
        own: what follows, [k].
    """
    choice = detector.choice
    features = StepFeatures(choice, hooked_readout(hooked), prompt=prompt[None])
    statistic = detector.statistic(1)
    found = []
    with torch.no_grad():
        if "prefix" in choice.groups:
            features.read_prompt(hooked(prompt[None], padding_side="right"))
        for k in range(len(own)):
            logits, cache = hooked.run_with_cache(torch.cat([prompt, own[:k]])[None], padding_side="right")
            last, depth = hooked.cfg.n_layers - 1, choice.stream_depths
            stream = {
                d: cache[f"blocks.{d}.hook_resid_pre" if d <= last else f"blocks.{last}.hook_resid_post"] for d in depth
            }
            states = StepStates(
                logits[:, -1],
                {d: value[:, -1] for d, value in stream.items()},
                {layer: cache[f"blocks.{layer}.attn.hook_z"][:, -1] for layer in choice.attention_layers},
                {layer: cache[f"blocks.{layer}.attn.hook_pattern"][:, :, -1] for layer in choice.attention_layers},
                {layer: cache[f"blocks.{layer}.mlp.hook_post"][:, -1] for layer in choice.neuron_layers},
            )
            score = detector.score(features.step(states, own[k - 1 : k] if k else None), k)
            found.append((float(score[0]), float(statistic.step(score, k)[0])))
    scores, statistics = np.array(found).T
    return scores, statistics


def dividing_detector(pair: Twins, texts: list[Tensor], new: int, choice: FeatureChoice = PLAIN) -> Detector:
    """A detector whose threshold divides the texts: about half raise an alarm within so many greedy tokens."""
    with Monitor(random_detector(pair.hooked, choice, threshold=1e9), pair.causal) as monitor:
        pair.causal.generate(**padded(texts), max_new_tokens=new, do_sample=False)
    score = monitor.result.score.max("k").values
    odds = np.sort(np.log(score / (1 - score)))
    middle = len(odds) // 2
    assert odds[middle] - odds[middle - 1] > 0.01
    return random_detector(pair.hooked, choice, threshold=float(odds[middle - 1 : middle + 1].mean()))


def prompts(*lengths: int, seed: int = 0) -> list[Tensor]:
    """Random prompts; padding (1) and the end of text (7) are not in them."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(8, VOCABULARY, (length,), generator=random) for length in lengths]


def padded(texts: list[Tensor]) -> dict[str, Tensor]:
    """Prompts of any lengths, padded at the left, as `generate` takes them."""
    length = max(len(text) for text in texts)
    ids = torch.stack([torch.cat([torch.ones(length - len(text)).long(), text]) for text in texts])
    mask = torch.stack([(torch.arange(length) >= length - len(text)).long() for text in texts])
    return {"input_ids": ids, "attention_mask": mask}
