"""The study of Stoehr et al. (2024, arXiv 2403.19851) repeated: every published number beside the measured one."""
