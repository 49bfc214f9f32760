"""Where in the network a memory is: gradients, patching, ablation, attention, neurons."""

import lazy_loader

# A name of the public surface is this whole module.
__getattr__, __dir__, _ = lazy_loader.attach(__name__, submodules={"metrics"})
