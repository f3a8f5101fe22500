"""Files that are whole or absent, folders that are one run's, and readers that nothing can stall."""

from .atomic import probe_writable, replace_file
from .locks import FolderLock
from .opening import open_regular, resolve

__all__ = ["FolderLock", "open_regular", "probe_writable", "replace_file", "resolve"]
