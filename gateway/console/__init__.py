"""What operators look at and repair: the API here, and the pages over it."""
