"""Reading config files without showing what environment variables hold."""

import logging
import os
import re

from mmengine.config import Config
from mmengine.logging import MMLogger

#: Environment variable with the key of ``ConvUnlearnable``, which no config may have.
KEY_VARIABLE = 'VITDOWN_UNLEARNABLE_KEY'
# The variable of the shipped configs, a folder
_DATA_VARIABLE = 'VITDOWN_DATA'


class ConfigError(ValueError):
    """A config that can't be read or an override that fits nothing."""


class _Silence(logging.Filter):
    """Leaves out MMEngine's messages with values of environment variables; keeps the names."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        match = re.match(r'Using env variable `(\w+)`', record.getMessage())
        if match:
            self.names.add(match[1])
        return match is None


def read_config(path: str) -> Config:
    """Read a config file; nothing of the key of ``ConvUnlearnable`` gets into it, log or messages.

    Raises:
        FileNotFoundError: If the file or a base does not exist.
        ConfigError: If it is no valid config, or refers to the environment variable of the key.
    """
    logger, silence = MMLogger.get_current_instance(), _Silence()
    key = os.environ.pop(KEY_VARIABLE, None)
    logger.addFilter(silence)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        if KEY_VARIABLE in str(error):
            raise _refer_to_key(path) from None
        if names := silence.names - {_DATA_VARIABLE}:
            # The error may quote what stands for a variable.
            raise ConfigError(
                f'Config {path} cannot be read with {", ".join(sorted(names))} of the environment '
                f'filled in: {type(error).__name__}'
            ) from None
        if isinstance(error, FileNotFoundError):
            raise
        raise ConfigError(f'Config {path} cannot be read: {error}') from error
    finally:
        logger.removeFilter(silence)
        if key is not None:
            os.environ[KEY_VARIABLE] = key
    if re.search(rf'\{{\{{[\'"]?\s*\${KEY_VARIABLE}\b', cfg.text):
        raise _refer_to_key(path)
    return cfg


def _refer_to_key(path: str) -> ConfigError:
    return ConfigError(
        f'Config {path} refers to the environment variable {KEY_VARIABLE}, whose value must be in '
        'no config, since configs are written beside results. Take it out: ConvUnlearnable reads '
        'this variable by itself, or the one that key_variable names.'
    )
