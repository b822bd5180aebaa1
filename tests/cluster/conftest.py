from servers import servers

__all__ = ["servers"]
