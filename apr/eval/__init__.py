"""Runs methods over many problems and says what they reached and what it cost."""
