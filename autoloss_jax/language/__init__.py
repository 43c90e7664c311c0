"""The loss language: formulas whose types are their free indices."""
