"""A trace to look at: when each thread decoded, and what it wrote."""

from apr.viewer.page import page
from apr.viewer.timeline import flat, plain, svg

__all__ = ["flat", "page", "plain", "svg"]
