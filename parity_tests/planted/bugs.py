"""The planted bugs: each a change in one place that still trains, and the lowest rung of the ladder that has to say so.

Sources: [1] traps met when the two trainers were written; [2] optax.contrib.muon, which isn't the published Muon;
[3] kinds of silent bugs that TTrace found in a distributed trainer (arXiv 2506.09280), carried over to what there is
here; [4] what a framework does where nobody says (docs/defaults.md).
"""

from parity_tests.planted.bug import Bug
from parity_tests.planted.model_bugs import MODEL_BUGS
from parity_tests.planted.training_bugs import TRAINING_BUGS

BUGS: list[Bug] = MODEL_BUGS + TRAINING_BUGS
"""In the order of their rungs."""
