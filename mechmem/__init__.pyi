from .data.bundled import bundled_paragraphs as bundled_paragraphs
from .data.bundled import bundled_unigram_counts as bundled_unigram_counts
from .data.counts import cluster as cluster
from .data.filters import PAPER_KEYWORDS as PAPER_KEYWORDS
from .data.paragraphs import Paragraphs as Paragraphs
from .data.windows import WindowSettings as WindowSettings
from .intervene.ablate import ablate_heads as ablate_heads
from .intervene.masks import Mask as Mask
from .intervene.support import verify_support as verify_support
from .intervene.unlearn import unlearn as unlearn
from .localize.gradients import parameter_gradients as parameter_gradients
from .localize.gradients import weight_gradients as weight_gradients
from .localize.heads import rare_token_attention as rare_token_attention
from .measure.covariates import with_covariates as with_covariates
from .measure.matching import match as match
from .measure.pairs import worst_perturbations as worst_perturbations
from .measure.permutation import permutation_test as permutation_test
from .measure.perturb import perturb_prefix as perturb_prefix
from .measure.scan import scan as scan
from .measure.scan_settings import ScanSettings as ScanSettings
from .measure.scores import kl as kl
from .measure.scores import score as score
from .measure.scores import split as split
from .measure.stats import cluster_bootstrap as cluster_bootstrap
from .model.export import export as export
from .model.load import load_model as load_model

__all__: list[str]
