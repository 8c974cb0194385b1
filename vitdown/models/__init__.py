from .backbones import *  # noqa: F403
from .classifiers import *  # noqa: F403
from .distillation import *  # noqa: F403
from .heads import *  # noqa: F403
from .identifiers import *  # noqa: F403
from .losses import *  # noqa: F403
from .necks import *  # noqa: F403
from .token_fusion import *  # noqa: F403
