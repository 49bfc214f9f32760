"""Fixtures that several stages' tests share."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_neo_weights

from mechmem.data.assets import bundled_paragraphs
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.load import DEPRECATION, load_model

VOCABULARY = 61
WINDOW = 19


@dataclasses.dataclass(frozen=True)
class TinyPair:
    """One random GPT-Neo, as transformers and as TransformerLens run it."""

    reference: transformers.GPTNeoForCausalLM
    hooked: HookedTransformer


def reference_neo(seed: int = 0) -> transformers.GPTNeoForCausalLM:
    """A random GPT-Neo of 4 layers x 3 heads whose sizes differ, with weights large enough to tell tokens apart."""
    config = transformers.GPTNeoConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        hidden_size=21,
        num_layers=4,
        num_heads=3,
        intermediate_size=44,
        attention_types=[[["global", "local"], 2]],
        window_size=WINDOW,
        initializer_range=0.25,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.GPTNeoForCausalLM(config).eval()
        # Fresh biases are zero and fresh norms one: a program that forgot them would pass.
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "ln_" in name:
                parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


def hooked_config(reference: transformers.GPTNeoForCausalLM) -> HookedTransformerConfig:
    config = reference.config
    return HookedTransformerConfig(
        n_layers=config.num_layers,
        n_heads=config.num_heads,
        d_model=config.hidden_size,
        d_head=config.hidden_size // config.num_heads,
        d_mlp=config.intermediate_size,
        n_ctx=config.max_position_embeddings,
        d_vocab=config.vocab_size,
        act_fn="gelu_new",
        eps=config.layer_norm_epsilon,
        use_attn_scale=False,
        use_local_attn=True,
        attn_types=config.attention_layers,
        window_size=config.window_size,
        original_architecture="GPTNeoForCausalLM",
        device="cpu",
    )


def new_hooked(config: HookedTransformerConfig) -> HookedTransformer:
    """A HookedTransformer of random weights, without the notice that its class goes in version 4."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", DEPRECATION, DeprecationWarning)
        return HookedTransformer(config)


def hooked_neo(reference: transformers.GPTNeoForCausalLM) -> HookedTransformer:
    """The same weights, raw, as a HookedTransformer."""
    config = hooked_config(reference)
    model = new_hooked(config)
    model.load_and_process_state_dict(
        convert_neo_weights(reference, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.eval()


@pytest.fixture(scope="session")
def bundled_model() -> HookedTransformer:
    """The bundled model with raw weights, loaded once for all tests. Leave it as it is."""
    return load_model("bundled")


@pytest.fixture(scope="session")
def bundled() -> Paragraphs:
    """The shipped paragraphs."""
    return bundled_paragraphs()


@pytest.fixture(scope="session")
def tiny_pair() -> TinyPair:
    reference = reference_neo()
    return TinyPair(reference, hooked_neo(reference))


@pytest.fixture(scope="session")
def small_model() -> Callable[..., HookedTransformer]:
    """Make a random model of 2 layers x 2 heads, any setting of HookedTransformerConfig changed."""

    def make(**changes: Any) -> HookedTransformer:
        settings: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 10, "d_head": 5, "n_ctx": 16, "d_vocab": 17}
        settings |= {"act_fn": "gelu", "seed": 1, "device": "cpu"} | changes
        with torch.random.fork_rng():
            return new_hooked(HookedTransformerConfig(**settings))

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_pair) -> HookedTransformer:
    """A random GPT-Neo with raw weights: vocabulary 61, 4 layers x 3 heads, context 128. Leave it as it is."""
    return tiny_pair.hooked


@pytest.fixture(scope="session", params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    """Each device that tests compute on: the CPU, and a GPU where there is one."""
    return request.param


@pytest.fixture(scope="session")
def device_model(tiny_pair, device) -> HookedTransformer:
    """The tiny model on each device. Leave it as it is."""
    return hooked_neo(tiny_pair.reference).to(device)


@pytest.fixture(scope="session")
def tiny_paragraphs() -> Paragraphs:
    """Eleven random paragraphs of 23 tokens with a prefix of 13."""
    tokens = torch.randint(0, VOCABULARY, (11, 23), generator=torch.Generator().manual_seed(5))
    return Paragraphs(tokens, prefix_len=13)


# Every stage in seconds. As texts, since they go through the command line.
SMALL_STUDY = (
    "limit=200", "decoded=8", "gradient_sample=4", "ablation_sample=2", "pairs=2", "targets=3", "evaluated=6",
    "steps=4", "attack_prefixes=2", "relearning_steps=1", 'edits=["npo all", "npo top", "npo random"]',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SmallStudy:
    """A whole study that `mechmem run` made, and what the command printed."""

    folder: Path
    output: str


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    """For tests that only read it: the study's, the commands' and the report's."""
    from typer.testing import CliRunner

    from mechmem.cli import app

    folder = tmp_path_factory.mktemp("small") / "study"
    sets = [word for text in SMALL_STUDY for word in ("--set", text)]
    answer = CliRunner().invoke(app, ["run", "--out", str(folder), *sets])
    assert answer.exit_code == 0, answer.output
    return SmallStudy(folder, answer.output)


@dataclasses.dataclass(frozen=True)
class DetectedStudy:
    """A scanned study with the detector that `mechmem detect` trained, and what the command printed."""

    folder: Path
    output: str
    settings: Any


@pytest.fixture(scope="session")
def detected_study(tmp_path_factory: pytest.TempPathFactory) -> DetectedStudy:
    """For tests that only read it."""
    from typer.testing import CliRunner

    from mechmem.cli import app
    from mechmem.study.detection_settings import DetectionSettings

    folder = tmp_path_factory.mktemp("detected") / "study"
    settings = DetectionSettings(features=("output",), method="logistic", trained=30, evaluated=20, false_alarms=0.2)
    words = ["detect", "--out", str(folder), "--limit", "200", "--set", "decoded=8", "--features", "output"]
    words += ["--method", "logistic", "--trained", "30", "--evaluated", "20", "--false-alarms", "0.2"]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    return DetectedStudy(folder, answer.output, settings)
