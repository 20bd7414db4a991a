from . import analysis, diagnostics, inference, neural_nets, objectives, policies, simulators, utils

__version__: str
