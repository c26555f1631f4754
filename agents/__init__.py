"""Who learns, plans and evaluates inside the dream."""
