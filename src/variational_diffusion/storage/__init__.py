"""Files: written whole or not at all, with checks when they are read."""
