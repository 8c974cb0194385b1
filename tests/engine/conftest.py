import random

import pytest
from mmengine.logging import MMLogger


@pytest.fixture(autouse=True)
def open_logger_for_the_next_test():
    """A runner closes its log file and leaves the logger current; later tests need an open one."""
    yield
    MMLogger.get_instance(f'after_{random.getrandbits(64)}')
