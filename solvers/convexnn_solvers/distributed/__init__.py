"""R-FISTA with the gates divided among the processes of a ``torch.distributed`` job.

From the bottom up:
``ranks`` ``shares`` ``gate_parallel``
"""

from convexnn_solvers.distributed.gate_parallel import GateParallel as GateParallel
from convexnn_solvers.distributed.ranks import RankLost as RankLost
from convexnn_solvers.public_names import name_after as _name_after

_name_after(__name__, globals())
