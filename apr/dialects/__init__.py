"""Text formats in which a model writes spawn and join. Knows no engine and no task."""
