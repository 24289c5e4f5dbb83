"""What holds a run together: its directory, and what is kept or measured of it."""
