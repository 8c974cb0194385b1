from .reidentifier import ReIdentifier, ReIDTTAModel

__all__ = ['ReIDTTAModel', 'ReIdentifier']
