"""What commands share: options, and how results are printed. None of it imports torch."""
