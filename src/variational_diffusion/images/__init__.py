"""Images of arrays, and what classical coders need for them."""
