"""A trace to look at: when each thread decoded, and what it wrote."""

from apr.viewer.page import page
from apr.viewer.timeline import svg

__all__ = ["page", "svg"]
