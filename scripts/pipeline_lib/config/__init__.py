"""Every setting of every stage, typed; see run.py for the whole tree and load.py for how a YAML becomes one."""

from .base import PROJECT_ROOT, Section, resolve_path

__all__ = ["PROJECT_ROOT", "Section", "resolve_path"]
