"""Runs methods over many problems, keeps what came of them, and says what it amounts to."""
