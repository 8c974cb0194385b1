from .hooks import *  # noqa: F403
from .schedulers import *  # noqa: F403
from .seeding import seed_worker

__all__ = ['seed_worker']
